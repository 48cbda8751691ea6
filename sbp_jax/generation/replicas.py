"""Copies of a model side by side, each on its own devices and with its own requests.

A copy takes as many devices as `execution.mesh` cuts a model into, fsdp times tensor; the data axis is what is left,
and the copies know nothing of one another: none waits for the longest document of another.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from sbp_jax.config import MeshShape
from sbp_jax.errors import SbpError
from sbp_jax.generation.requests import Completion, Request
from sbp_jax.parallel.mesh import build_mesh


class Generator(Protocol):
    """An engine: what is asked for comes back in any order."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]: ...


def meshes(sizes: MeshShape) -> list[Mesh]:
    """A mesh for each copy of the model on this host's devices.

    A single CPU device has two copies: while one waits for its threads, or computes on one of them, the other works.

    Raises:
      SbpError: the copies do not fit the devices.
    """
    devices, cut = jax.local_devices(), sizes.fsdp * sizes.tensor
    copies = len(devices) // cut if sizes.data == -1 or jax.process_count() > 1 else sizes.data
    if cut < 1 or copies < 1 or copies * cut > len(devices):
        raise SbpError(
            f"execution.mesh cuts a model into {sizes.fsdp} x {sizes.tensor} parts, and {copies or 'no'} copies do not"
            f" fit the {len(devices)} devices of this host; make fsdp and tensor smaller"
        )
    each = MeshShape(1, sizes.fsdp, sizes.tensor)
    if len(devices) == 1 and devices[0].platform == "cpu" and (os.cpu_count() or 1) > 1:
        return [build_mesh(each, devices)] * 2
    return [build_mesh(each, devices[copy * cut : (copy + 1) * cut]) for copy in range(copies)]


def generate(engines: Sequence[Generator], work: Sequence[Iterable[Request]]) -> Iterator[Completion]:
    """Completions of all engines as they come, each engine having a thread; an error of one stops all.

    Args:
      work: requests, one list or generator for each shard; an engine that runs out of requests takes the next one.
    """
    if len(engines) == 1:
        yield from engines[0].generate(request for requests in work for request in requests)
        return
    waiting: queue.SimpleQueue[Iterable[Request]] = queue.SimpleQueue()
    for requests in work:
        waiting.put(requests)
    done: queue.Queue[Any] = queue.Queue(maxsize=1024)
    stop = threading.Event()

    def asked() -> Iterator[Request]:
        while not stop.is_set():
            try:
                taken = waiting.get_nowait()
            except queue.Empty:
                return
            for request in taken:
                if stop.is_set():
                    return
                yield request

    def run(engine: Generator) -> None:
        try:
            for completion in engine.generate(asked()):
                if stop.is_set():
                    return
                done.put(completion)
            done.put(None)
        except BaseException as error:  # raised again where the completions are read
            done.put(error)

    threads = [threading.Thread(target=run, args=(engine,), daemon=True) for engine in engines]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            answer = done.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                running -= 1
            else:
                yield answer
    finally:
        stop.set()
        while any(thread.is_alive() for thread in threads):
            try:
                done.get(timeout=0.1)
            except queue.Empty:
                pass


def backing_off(
    slots: int, build: Callable[[int], Sequence[Generator]], use: Callable[[Sequence[Generator]], None], say: Callable
) -> None:
    """Builds engines and uses them, with half as many slots each time that there is not memory enough.

    Args:
      slots: of each engine to begin with.
      build: makes the engines for so many slots.
      use: works with them; after a failure it is called again and does what is left.
      say: receives a line for the user.

    Raises:
      SbpError: there is no memory for a single slot.
    """
    while True:
        try:
            engines = build(slots)
            use(engines)
            return
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            if slots == 1:
                raise SbpError(
                    "there is not memory enough for a single slot; cut the model over more devices with"
                    f" execution.mesh.tensor or fsdp, or lower tuning.context ({str(error).splitlines()[0][:200]})"
                ) from None
            short = slots
        engines = []  # the memory of the failed ones is given back before there are new ones
        slots = max(1, short // 2)
        say(f"not memory enough for {short} slots: going on with {slots}; set execution.slots={slots} to begin so")
