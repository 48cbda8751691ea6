"""Comparisons with transformers, which the environment of the other tests does not have (`make test-interop`)."""

import importlib.util

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]
