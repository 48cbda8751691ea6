"""Continuous batching: a fixed number of slots generate together, and a slot that finishes takes the next request.

All shapes are fixed, so that two programs are compiled once each: one reads blocks of prompts into the cache, the other
generates some tokens in all slots. What a request yields depends on itself, the weights and these shapes alone: no
reduction runs over rows, and random keys are counters.

While an accelerator generates, the host looks at what the call before gave and prepares the next prompts: it is told of
a finished slot one call late, and fills it with the next call but one.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import jax
import numpy as np
from jax.sharding import Mesh

from sbp_jax.config import Model
from sbp_jax.errors import SbpError
from sbp_jax.generation.decoding import END, LENGTH, LOOP, RUNNING, Outputs, Slots, idle_rows, idle_slots
from sbp_jax.generation.pages import PageTable
from sbp_jax.generation.programs import PIECE, programs
from sbp_jax.generation.requests import Completion, Request
from sbp_jax.model.incremental import by_layer
from sbp_jax.model.parameters import Parameters, place
from sbp_jax.parallel.sharding import activations
from sbp_jax.text.tokenizer import TextTokenizer

FINISH = {END: "end", LENGTH: "length", LOOP: "loop"}


@dataclass
class Work:
    """What an engine has done so far.

    Attributes:
      slot_steps: tokens that the slots could have generated, and `generated` those that they did.
      prompt_tokens: tokens of prompts, `read_tokens` with what fills their last blocks and calls.
      put_back: requests that lost their slot because there were no pages left, and began again.
      waiting_seconds: of the host for the device; the rest of `seconds` it works beside it.
      seconds: from the first request to the last completion.
    """

    slot_steps: int = 0
    generated: int = 0
    prompt_tokens: int = 0
    read_tokens: int = 0
    put_back: int = 0
    waiting_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of the slots' steps that generated a token which counts."""
        return self.generated / max(self.slot_steps, 1)


@dataclass
class _Entry:
    """A request in a slot.

    Attributes:
      reach: positions that it may have come to, as far as the host knows.
    """

    request: Request
    reach: int
    pieces: list[np.ndarray] = field(default_factory=list)
    done: bool = False


class Engine:
    """A model on its devices, with slots for sequences and pages for what they have read and written."""

    def __init__(
        self,
        config: Model,
        parameters: Parameters,
        tokenizer: TextTokenizer,
        *,
        context: int,
        mesh: Mesh,
        slots: int,
        decode_steps: int,
        seed: int,
        name: str,
        cache_tokens: int | None = None,
        circles: bool = True,
        ahead: bool | None = None,
    ):
        """Places parameters and an empty cache, and compiles what generates.

        Args:
          parameters: arrays of the host, or of the devices, as `huggingface.load` gives them; those are given up.
          tokenizer: its special tokens end documents and are never chosen, respectively.
          context: most tokens of a prompt and what it is continued by.
          decode_steps: tokens generated between two looks at what has finished.
          seed: of the random keys.
          name: of the model, for messages.
          cache_tokens: positions of all pages; None: three quarters of the context for each slot.
          circles: whether a text that goes round in a circle is ended.
          ahead: whether the next call is handed to the device before the last one is looked at. None: not on a CPU,
            where both would take turns on the same cores.

        Raises:
          SbpError: the model lacks rows for some tokens of the tokenizer.
        """
        vocabulary = parameters["embedding"].shape[0]
        if vocabulary < tokenizer.vocab_size:
            raise SbpError(
                f"{name} has {vocabulary} embeddings and the tokenizer {tokenizer.vocab_size} tokens;"
                " use the tokenizer of the model"
            )
        self.mesh, self.slots, self.name, self.context = mesh, slots, name, context
        self.work = Work()
        platform = mesh.devices.flat[0].platform
        self._ahead = platform != "cpu" if ahead is None else ahead
        self._steps = decode_steps
        self._programs = programs(
            config,
            vocabulary,
            tokenizer.vocab_size,
            tokenizer.end_of_document,
            tokenizer.separator,
            context=context,
            mesh=mesh,
            slots=slots,
            decode_steps=decode_steps,
            seed=seed,
            cache_tokens=cache_tokens,
            circles=circles,
        )
        placed = place(parameters, self._programs.loaded)
        self._parameters = by_layer(placed)
        for stacked in jax.tree.leaves(placed["layers"]):  # the caller may hold them: then there were two of each
            stacked.delete()
        self._caches = self._programs.make_caches()
        self._slots: Slots = jax.device_put(idle_slots(slots), self._programs.everywhere)
        self._table = self._new_table()
        self._halted: list[int] = []  # slots whose requests have enough, which the device does not know yet
        self._read_blocks([])  # compiles both, and finds out whether there is memory for them
        jax.block_until_ready(self._call([], []))

    def _new_table(self) -> PageTable:
        return PageTable(self.slots, self._programs.page_count, self._programs.page, self.context)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields completions as they finish; requests are taken in order, as slots and pages become free.

        Raises:
          SbpError: a prompt that is empty or longer than the context, or logits that are not finite.
        """
        pending = iter(requests)
        ready: deque[Request] = deque()
        busy: dict[int, _Entry] = {}  # by slot, the one admitted last at the end
        free = list(range(self.slots))
        called: tuple[Outputs, dict[int, _Entry]] | None = None
        began = time.monotonic()
        try:
            while True:
                ready.extend(map(self._checked, islice(pending, max(0, self.slots - len(ready)))))
                given_up = self._go_on(busy)
                ready.extendleft(busy.pop(slot).request for slot in given_up)
                free += given_up
                taken = self._admit(busy, free, ready) if not given_up else []
                outputs = None
                if busy:
                    self._fill(taken)
                    outputs = (self._call(taken, given_up + self._halted), dict(busy))
                    self._halted = []
                    ready.extend(map(self._checked, islice(pending, max(0, self.slots - len(ready)))))
                if not self._ahead:
                    called = outputs
                if called is not None:
                    for slot, completion in self._finished(*called):
                        self._table.release(slot)
                        del busy[slot]
                        free.append(slot)
                        yield completion
                called = outputs if self._ahead else None
                if not (busy or ready or called):
                    return
        finally:
            self.work.seconds += time.monotonic() - began
            if busy or self._halted:  # given up half-way: what stands in the slots is not to be gone on with
                self._halted = []
                self._slots = jax.device_put(idle_slots(self.slots), self._programs.everywhere)
                self._table = self._new_table()

    def _go_on(self, busy: dict[int, _Entry]) -> list[int]:
        """Gives each busy slot pages for the next call; returns those, the latest, that had to give theirs up."""
        given_up: list[int] = []
        for slot, entry in list(busy.items()):
            while not entry.done:
                reach = min(entry.reach + self._steps, len(entry.request.prompt) + entry.request.limit)
                if self._table.cover(slot, reach):
                    entry.reach = reach
                    break
                last = next(other for other in reversed(busy) if not busy[other].done)
                busy[last].done = True
                self._table.release(last)
                self.work.put_back += 1
                given_up.append(last)
        return given_up

    def _admit(self, busy: dict[int, _Entry], free: list[int], ready: deque[Request]) -> list[tuple[int, Request]]:
        """Puts requests into free slots, as long as there are pages."""
        taken = []
        while free and ready:
            request = ready[0]
            reach = min(len(request.prompt) - 1 + self._steps, len(request.prompt) + request.limit)
            if not self._table.cover(free[-1], reach):
                break
            slot = free.pop()
            busy[slot] = _Entry(ready.popleft(), reach)
            taken.append((slot, request))
        return taken

    def _checked(self, request: Request) -> Request:
        length = len(request.prompt)
        if length < 1 or request.limit < 1 or length + request.limit > self.context:
            raise SbpError(
                f"seed document {request.ordinal} has a prompt of {length} tokens and {request.limit} to generate;"
                f" {self.name} is to read and write {self.context} in all: leave it out, or raise tuning.context"
            )
        return request

    def _fill(self, taken: list[tuple[int, Request]]) -> None:
        """Fills the cache of some slots with all but the last token of their prompts, which `decode` reads first."""
        pieces: list[tuple[np.ndarray, int, int]] = []
        for slot, request in taken:
            read_first = request.prompt[:-1]
            pieces += [(read_first[start : start + PIECE], slot, start) for start in range(0, len(read_first), PIECE)]
            self.work.prompt_tokens += len(read_first)
        pieces.sort(key=lambda piece: piece[2])  # those read together look back equally far
        for start in range(0, len(pieces), self._programs.pieces):
            self._read_blocks(pieces[start : start + self._programs.pieces])

    def _read_blocks(self, pieces: list[tuple[np.ndarray, int, int]]) -> None:
        tokens_MP = np.zeros((self._programs.pieces, PIECE), np.int32)
        tables_MZ = np.full((self._programs.pieces, self._table.table.shape[1]), self._programs.page_count, np.int32)
        starts_M = np.zeros(self._programs.pieces, np.int32)
        for row, (tokens, slot, start) in enumerate(pieces):
            tokens_MP[row, : len(tokens)] = tokens
            tables_MZ[row], starts_M[row] = self._table.table[slot], start
        self.work.read_tokens += tokens_MP.size
        with activations(self.mesh):
            self._caches = self._programs.read(self._parameters, self._caches, tokens_MP, tables_MZ, starts_M)

    def _call(self, taken: list[tuple[int, Request]], given_up: list[int]) -> Outputs:
        """Has tokens generated in all slots, and does not wait for them.

        Args:
          taken: slots and the requests that they begin with.
          given_up: slots that fall idle.
        """
        rows, admitted_B = idle_rows(self.slots), np.zeros(self.slots, bool)
        admitted_B[given_up] = True
        for slot, request in taken:
            admitted_B[slot] = True
            rows.tokens[slot] = request.prompt[-1]
            rows.positions[slot] = len(request.prompt) - 1
            rows.remaining[slot] = request.limit
            ordinal = request.ordinal
            rows.origins[slot] = (ordinal & 0xFFFFFFFF, ordinal >> 32 & 0xFFFFFFFF, request.sample)
            rows.temperature[slot] = request.sampling.temperature
            rows.top_p[slot] = request.sampling.top_p
            rows.top_k[slot] = request.sampling.top_k
        with activations(self.mesh):
            self._caches, self._slots, outputs = self._programs.decode(
                self._parameters, self._caches, self._slots, rows, admitted_B, self._table.table.copy()
            )
        return outputs

    def _finished(self, outputs: Outputs, entries: dict[int, _Entry]) -> Iterator[tuple[int, Completion]]:
        """The slots that finished in a call, and what they completed."""
        began = time.monotonic()
        found: Outputs = jax.device_get(outputs)
        self.work.waiting_seconds += time.monotonic() - began
        self.work.slot_steps += self.slots * int(found.steps)
        for slot, entry in entries.items():
            if entry.done:
                continue
            request, count = entry.request, int(found.counts[slot])
            if not found.finite[slot]:
                raise SbpError(
                    f"{self.name} gives logits that are no finite numbers for seed document {request.ordinal},"
                    f" sample {request.sample}; its training diverged: lower tuning.peak_lr, or use another checkpoint"
                )
            entry.pieces.append(np.array(found.tokens[slot, :count]))
            self.work.generated += count
            running = found.finish[slot] == RUNNING
            if not running or (request.stop is not None and request.stop(np.concatenate(entry.pieces))):
                entry.done = True
                tokens = np.concatenate(entry.pieces)
                finish = "stop" if running else FINISH[int(found.finish[slot])]
                if running:
                    self._halted.append(slot)
                yield (
                    slot,
                    Completion(request, tokens[: len(tokens) - (finish == "end")], finish, float(found.logprobs[slot])),
                )
