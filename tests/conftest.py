"""Eight CPU devices for every test, compiled programs shared, and browser tests only where there is a browser."""

import os
import shutil
from pathlib import Path

import pytest

DEVICES = "--xla_force_host_platform_device_count"

# Before anything imports jax: it reads these once.
_flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICES)]
os.environ["XLA_FLAGS"] = " ".join([*_flags, f"{DEVICES}=8"])
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a small run is compilation: what one test has compiled the others, and the processes they start, read.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A browser test without a browser is skipped by a person's machine and fails in CI."""
    if item.get_closest_marker("browser") and shutil.which("chromium") is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed, and CI may not leave out the browser tests", pytrace=False)
        pytest.skip("needs chromium on the path")
