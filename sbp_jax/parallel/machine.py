"""What has to be settled with the machine before JAX starts."""

import ctypes
import importlib.util
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_ACCELERATORS = ("accel*", "vfio/*", "nvidia[0-9]*", "dxg")  # device files of TPUs and GPUs
_ARENAS, _MAPPED, _TRIM = -8, -4, -1  # M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of glibc's malloc.h
_GROUPS = "/sys/fs/cgroup", "memory.max"
ARENAS = 8  # at most, one for each core: threads wait for a single one, and each keeps what it freed for itself


def memory() -> int:
    """Bytes that this process may use: those of the machine, or less where a container or a job is held to less."""
    limits = [psutil.virtual_memory().total]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                root, name = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else _GROUPS
                own = Path(root) / group.lstrip("/")
                for folder in (own, *own.parents):
                    with suppress(OSError, ValueError):  # "max"; a container sees its own group as the root
                        limits.append(int((folder / name).read_text()))
    return min(limits)


def prepare() -> None:
    """Fits this process to the machine; has to come before threads and before JAX.

    It may open as many files as it is allowed to: a large corpus has many shards, which are mapped. Without an
    accelerator JAX is kept from looking for a TPU, at length and loudly, because its compiler is installed to plan
    with. And memory that a step frees is kept for the next one: glibc would give large blocks back to the system,
    which clears every page of them anew, a tenth of a step's time.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # macOS says "no limit" and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if any(True for pattern in _ACCELERATORS for _ in Path("/dev").glob(pattern)):
        return
    if importlib.util.find_spec("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        for option, value in ((_ARENAS, min(os.cpu_count() or 1, ARENAS)), (_MAPPED, 0), (_TRIM, 2**31 - 1)):
            set_option(option, value)
