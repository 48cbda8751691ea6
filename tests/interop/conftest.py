"""Comparisons with transformers, which the environment of the other tests does not have (`make test-interop`)."""

import importlib.util

if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
    collect_ignore_glob = ["test_*.py"]
