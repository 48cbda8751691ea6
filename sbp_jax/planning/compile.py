"""The real training step, compiled for devices that are not there: what it holds in memory and sends."""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from sbp_jax.planning import hlo
from sbp_jax.training.step import Setup, abstract_batch, abstract_state, train_step

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters, optimizer, batch: what the step is given.
      activations: temporaries while it runs, gradients and gathered weights among them.
      code: the program itself.
      peak: what the runtime sets aside: arguments, results that do not take their place, temporaries and code. None:
        the compiler gave up, for there is no way to fit the device.
      needed: the peak, or what the compiler said it would need at least.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int | None
    code: int | None
    peak: int | None
    needed: int


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step.

    Attributes:
      traffic: bytes that a device sends, by kind of collective.
      unknown_loops: loops whose length could not be read; their traffic counts once.
      recomputed: instructions that the compiler itself chose to compute again, to fit the memory.
      seconds: it took to compile.
    """

    memory: Memory
    traffic: dict[str, hlo.Traffic]
    unknown_loops: int
    recomputed: int
    seconds: float


@dataclass(frozen=True)
class Program:
    """What the compiler says of a program; bytes on one device.

    Attributes:
      arguments: what it is given, as far as it uses that.
      results: what does not take the place of an argument.
      text: its HLO.
    """

    arguments: int
    results: int
    temporaries: int
    code: int
    text: str
    seconds: float

    @property
    def peak(self) -> int:
        return self.arguments + self.results + self.temporaries + self.code


def compile_program(function: Any, *arguments: Any) -> Program | int:
    """Compiles a jitted function for abstract arguments; bytes that it would need at least, where there is no way."""
    start = time.monotonic()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _exhausted(str(error))
        if needed is None:
            raise
        return needed
    seconds, stats = time.monotonic() - start, compiled.memory_analysis()
    return Program(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        compiled.as_text(),
        seconds,
    )


def compile_step(setup: Setup) -> Compiled:
    """Compiles the training step for the devices of the setup's mesh; nothing runs, and no array is made."""
    start = time.monotonic()
    state, batch = abstract_state(setup), abstract_batch(setup)
    given = {
        "parameters": device_bytes(state.parameters),
        "optimizer": device_bytes(state.optimizer),
        "batch": device_bytes(batch),
    }
    program = compile_program(train_step(setup), state, batch)
    if isinstance(program, int):
        memory = Memory(**given, activations=None, code=None, peak=None, needed=program)
        return Compiled(memory, {}, 0, 0, time.monotonic() - start)
    memory = Memory(**given, activations=program.temporaries, code=program.code, peak=program.peak, needed=program.peak)
    traffic, unknown = hlo.collectives(program.text)
    recomputed = len(set(re.findall(r"%([\w.\-]+\.remat[\w.]*) =", program.text)))
    return Compiled(memory, traffic, unknown, recomputed, program.seconds)


def device_bytes(tree: Any) -> int:
    """Bytes of one device's part of abstract arrays, before the device's own padding."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _exhausted(message: str) -> int | None:
    """Bytes of HBM that a program would need, from the compiler's refusal; None: it failed for another reason."""
    refusals = r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM", r"Used ([\d.]+)([KMGT]) of \S+ hbm"
    found = next((match for match in (re.search(refusal, message) for refusal in refusals) if match), None)
    return found and int(float(found[1]) * UNITS[found[2]])
