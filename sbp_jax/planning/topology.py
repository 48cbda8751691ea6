"""TPU slices that are not there: their chips' limits, and devices to compile for with libtpu on a CPU."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from sbp_jax.errors import SbpError
from sbp_jax.training.flops import peak_flops

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What one device of a kind of chip gives to a program. The sources are in docs/planning.md.

    Attributes:
      kind: `device_kind` of JAX.
      memory_gib: HBM that libtpu leaves to a program.
      bandwidth: bytes a second to and from that memory.
      network: bytes a second that it can send inside its slice, over all links together.
      between_slices: bytes a second that it can send to other slices.
      dimensions: sides of a slice.
      devices: JAX devices a chip.
    """

    kind: str
    memory_gib: float
    bandwidth: float
    network: float
    between_slices: float
    dimensions: int
    devices: int = 1


CHIPS = {
    "v5e": Chip("TPU v5 lite", 15.75, 819e9, 200e9, 3.1e9, 2),
    "v5p": Chip("TPU v5", 95.74, 2765e9, 600e9, 6.2e9, 3),
    "v6e": Chip("TPU v6 lite", 31.25, 1638e9, 400e9, 12.5e9, 2),
    "tpu7x": Chip("TPU7x", 94.75, 3690e9, 300e9, 6.2e9, 3, devices=2),
}


@dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      chip: the limits of each device.
      flops: dense bfloat16 operations a second of each.
    """

    name: str
    slices: int
    chips: int
    devices: tuple[Any, ...]
    chip: Chip
    flops: float

    @property
    def memory(self) -> float:
        """Bytes of HBM a device."""
        return self.chip.memory_gib * GIB

    @property
    def kind(self) -> str:
        return self.devices[0].device_kind


def slice_of(name: str) -> tuple[Chip, int]:
    """The kind of chip of a slice such as "v5p:4x4x8", and how many there are.

    Raises:
      SbpError: the name says neither.
    """
    chip = CHIPS.get(name.partition(":")[0])
    shape = re.fullmatch(r"\d+(x\d+)+", name.partition(":")[2])
    if chip is None or shape is None or shape[0].count("x") + 1 != chip.dimensions:
        raise SbpError(
            f"--topology {name}: expected a kind of chip and the chips along each side of a slice, such as v5e:16x16,"
            f" v6e:16x16 or v5p:4x4x8; the kinds are {', '.join(CHIPS)}"
        )
    return chip, math.prod(map(int, shape[0].split("x")))


def get_topology(name: str, slices: int = 1) -> Topology:
    """The devices of `slices` slices, each of a topology such as "v5p:4x4x8".

    JAX itself is set to run on the CPU. Several such processes may run at once.

    Raises:
      SbpError: libtpu is missing, or knows no such topology.
    """
    chip, chips = slice_of(name)
    if importlib.util.find_spec("libtpu") is None:
        raise SbpError(
            "compiling for a TPU needs libtpu, which is not installed; on Linux and x86-64:"
            " python -m pip install -r requirements-tpu.txt"
        )
    _prepare()
    options: dict[str, Any] = {}
    if slices > 1:
        options["num_slices"] = slices
    if chips == 1:  # by default a host has 2x2 chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(topology_name=name, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise SbpError(f"--topology {name}: libtpu refuses it ({str(error).splitlines()[0]})") from error
    devices: tuple[Any, ...] = tuple(described.devices)
    peak = peak_flops(devices[0].device_kind)
    assert peak is not None, devices[0].device_kind
    return Topology(name, slices, len(devices) // chip.devices, devices, chip, peak)


def _prepare() -> None:
    """Keeps JAX on the CPU, and libtpu from looking for a TPU, for its lock or for a log file; before it is loaded."""
    jax.config.update("jax_platforms", "cpu")
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any: without one libtpu warns on the terminal; the topology is what counts
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
