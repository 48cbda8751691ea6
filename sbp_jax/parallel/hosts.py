"""The processes of a run, one on each host: how they find one another, and which of them speaks for all."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from sbp_jax.errors import SbpError

_task = 0, 1

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(heartbeat_seconds: int = 100) -> None:
    """Joins the other processes where the environment names them; has to come before anything touches a device.

    `SBP_DISTRIBUTED=auto` lets JAX find them, on Cloud TPU, under Slurm and under Open MPI; otherwise
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it, and where they are not set either, this
    process is alone.

    Args:
      heartbeat_seconds: silence after which a process counts as lost, and the others end.

    Raises:
      SbpError: some of the variables are missing or are no numbers, or the others cannot be reached.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    setting = os.environ.get("SBP_DISTRIBUTED", "")
    if setting not in ("", "auto"):
        raise SbpError(f"SBP_DISTRIBUTED={setting}; it may be auto, or not set")
    if not given and not setting or jax.distributed.is_initialized():
        return
    try:
        if setting:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
            return
        if len(given) < len(VARIABLES):
            missing = ", ".join(name for name in VARIABLES if name not in given)
            raise SbpError(f"{given[0]} is set, but not {missing}; several hosts need all three")
        address, *numbers = (os.environ[name] for name in VARIABLES)
        if not all(number.isdigit() for number in numbers):
            raise SbpError(f"{VARIABLES[1]} and {VARIABLES[2]} must be whole numbers, not {' and '.join(numbers)}")
        count, own = map(int, numbers)
        jax.distributed.initialize(address, count, own, heartbeat_timeout_seconds=heartbeat_seconds)
    except (RuntimeError, ValueError) as error:
        raise SbpError(f"the hosts of this run did not find one another ({str(error).splitlines()[0]})") from error


def join_array(task: str) -> None:
    """Makes this process one of the tasks of an array, given as "i/n", i from 0 on.

    The tasks know nothing of one another but the files of the work folder. A stage that is one program on all devices
    is the first's alone.

    Raises:
      SbpError: it is not of that form, or this process has found other hosts already.
    """
    global _task
    index, _, count = task.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise SbpError(f"--task {task}; it takes i/n, the tasks counted from 0, such as 0/8 to 7/8")
    if several() and int(count) > 1:
        raise SbpError("--task divides work among processes that do not know one another; these have found one another")
    _task = int(index), int(count)


def share() -> tuple[int, int]:
    """Which part of divided work is this process's, and of how many: that of a host, or of a task of an array."""
    return (jax.process_index(), jax.process_count()) if several() else _task


def is_first() -> bool:
    """Whether this process writes what is written once: manifests, metrics, finished models."""
    return share()[0] == 0


def several() -> bool:
    """Whether processes have found one another and are one program on all their devices."""
    return jax.process_count() > 1


def first_says(value: int) -> int:
    """The first process's value, on every process; a decision that all of them must take alike."""
    return int(multihost_utils.broadcast_one_to_all(value)) if several() else value


def all_say(value: int) -> bool:
    """Whether all processes have this value, an int32."""
    return not several() or len(set(multihost_utils.process_allgather(np.int32(value)).tolist())) == 1
