"""Tests of the second engine, which need an environment with vLLM (`make test-vllm`)."""

import os

if "SBP_VLLM_PYTHON" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
