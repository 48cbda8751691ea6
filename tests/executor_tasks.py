"""Tasks for executors, in a module that other processes import quickly."""

import errno
import os
import signal
import time
from pathlib import Path

from sbp_jax.errors import SbpError

ITEMS = [f"part-{number}" for number in range(8)]


def attempt(folder: str, item: str) -> int:
    """Notes an attempt; gives how many there have been."""
    with open(Path(folder) / item, "a") as stream:
        stream.write("x")
    return (Path(folder) / item).stat().st_size


def fails(folder: str, times: int, item: str) -> str:
    if attempt(folder, item) <= times and item == ITEMS[3]:
        raise ValueError(f"bad bytes in {item}")
    return item.upper()


def dies(folder: str, times: int, item: str) -> str:
    if attempt(folder, item) <= times and item == ITEMS[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return item.upper()


def waits(folder: str, item: str) -> None:
    Path(folder, f"{item}-{os.getpid()}").touch()
    time.sleep(600 if item != ITEMS[0] else 0)


def fills(folder: str, item: str) -> str:
    """A disk that is full from the second task on."""
    attempt(folder, item)
    if item != ITEMS[0]:
        raise OSError(errno.ENOSPC, "No space left on device")
    return item


def refuses(item: str) -> str:
    if item == ITEMS[3]:
        raise SbpError(f"{item} is damaged; copy it again")
    return item.upper()


def slowly(folder: str, item: str) -> str:
    attempt(folder, item)
    time.sleep(0.5)
    return item.upper()
