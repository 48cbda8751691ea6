"""Continuous batching: a fixed number of slots generate together, and a slot that finishes takes the next request.

All shapes are fixed, so that two programs are compiled once each: one reads blocks of prompts into the cache, the other
generates some tokens in all slots. What a request yields depends on itself, the weights and these shapes alone: no
reduction runs over rows, and random keys are counters.

While the device generates, the host looks at what the call before gave and prepares the next prompts: it is told of a
finished slot one call late, and fills it with the next call but one.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbp_jax.config import Model
from sbp_jax.errors import SbpError
from sbp_jax.generation.decoding import END, LENGTH, LOOP, RUNNING, Outputs, Slots, decode, idle_rows, idle_slots
from sbp_jax.generation.requests import Completion, Request
from sbp_jax.model import cached_attention, decode_kernel
from sbp_jax.model.incremental import Caches, empty_caches, grouped, read
from sbp_jax.model.parameters import Parameters, abstract, place, to_compute_dtype
from sbp_jax.parallel.sharding import activations, sharding
from sbp_jax.text.tokenizer import TextTokenizer

CACHE_DIMENSIONS = (None, None, "batch", "kv_heads", None, None)
FINISH = {END: "end", LENGTH: "length", LOOP: "loop"}
PIECE = 32  # tokens a block of prompts
PATIENCE = 1 / 16  # of the slots finish before a call ends early
CPU_PROMPT_TOKENS, PROMPT_TOKENS = 256, 2048  # read together


@dataclass
class Work:
    """What an engine has done so far.

    Attributes:
      slot_steps: tokens that the slots could have generated, and `generated` those that they did.
      prompt_tokens: tokens of prompts, `read_tokens` with what fills their last blocks and calls.
      waiting_seconds: of the host for the device; the rest of `seconds` it works beside it.
      seconds: from the first request to the last completion.
    """

    slot_steps: int = 0
    generated: int = 0
    prompt_tokens: int = 0
    read_tokens: int = 0
    calls: int = 0
    waiting_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of the slots' steps that generated a token which counts."""
        return self.generated / max(self.slot_steps, 1)


@dataclass
class _Entry:
    """A request in a slot."""

    request: Request
    pieces: list[np.ndarray] = field(default_factory=list)
    logprob: float = 0.0
    done: bool = False


class Engine:
    """A model on its devices with a cache for `slots` sequences."""

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
    ):
        """Places parameters and an empty cache, and compiles what generates.

        Args:
          parameters: arrays of the host, or of the devices, as `huggingface.load` gives them.
          tokenizer: its special tokens end documents and are never chosen, respectively.
          context: most tokens of a prompt and what it is continued by.
          decode_steps: most tokens generated between two looks at what has finished.
          seed: of the random keys.
          name: of the model, for messages.

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
        kernel = decode_kernel.runs(config, platform)
        groups = config.layers if kernel else 1
        block = block_length(context)
        blocks = -(-context // block)
        valid_V = np.arange(vocabulary) < tokenizer.vocab_size
        valid_V[tokenizer.separator] = False
        self._pieces = max(1, (CPU_PROMPT_TOKENS if platform == "cpu" else PROMPT_TOKENS) // PIECE)

        target = to_compute_dtype(config, abstract(config, vocabulary, mesh))  # once instead of at each step
        self._parameters = grouped(place(parameters, target), groups)
        weights = jax.tree.map(lambda leaf: leaf.sharding, grouped(target, groups))
        make = partial(empty_caches, config, groups, slots, blocks, block)
        placed = jax.tree.map(lambda leaf: sharding(CACHE_DIMENSIONS, leaf.shape, mesh), jax.eval_shape(make))
        self._caches: Caches = jax.jit(make, out_shardings=placed)()
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._everywhere = everywhere
        self._slots: Slots = jax.device_put(idle_slots(slots), everywhere)
        self._read = jax.jit(
            partial(read, config),
            donate_argnums=1,
            in_shardings=(weights, placed, *[everywhere] * 3),
            out_shardings=placed,
        )
        attend = decode_kernel.triton if kernel else cached_attention.xla
        choices = (decode_steps, tokenizer.end_of_document, valid_V, seed, attend)
        self._decode = jax.jit(
            partial(decode, config, vocabulary, *choices),
            donate_argnums=(1, 2),
            in_shardings=(weights, placed, *[everywhere] * 4),
            out_shardings=(placed, everywhere, everywhere),
        )
        self._read_blocks([])  # compiles both, and finds out whether there is memory for them
        jax.block_until_ready(self._call([], waiting=False))

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields completions as they finish; requests are taken in order, as slots become free.

        Raises:
          SbpError: a prompt that is empty or longer than the context, or logits that are not finite.
        """
        pending = iter(requests)
        ready: deque[Request] = deque()
        busy: dict[int, _Entry] = {}
        free = list(range(self.slots))
        called: tuple[Outputs, dict[int, _Entry]] | None = None
        began = time.monotonic()
        try:
            while True:
                ready.extend(map(self._checked, islice(pending, self.slots - len(ready))))
                taken = [(free.pop(), ready.popleft()) for _ in range(min(len(free), len(ready)))]
                busy |= {slot: _Entry(request) for slot, request in taken}
                outputs = None
                if busy:
                    self._fill(taken)
                    outputs = (self._call(taken, waiting=bool(ready)), dict(busy))
                    ready.extend(map(self._checked, islice(pending, self.slots - len(ready))))
                if called is not None:
                    for slot, entry in self._finished(*called):
                        del busy[slot]
                        free.append(slot)
                        yield entry
                called = outputs
                if called is None and not ready:
                    return
        finally:
            self.work.seconds += time.monotonic() - began
            if busy:  # given up half-way: what stands in the slots is not to be gone on with
                self._slots = jax.device_put(idle_slots(self.slots), self._everywhere)

    def _checked(self, request: Request) -> Request:
        length = len(request.prompt)
        if not 0 < length < self.context or request.limit < 1:
            raise SbpError(
                f"seed document {request.ordinal} has a prompt of {length} tokens and {request.limit} to generate;"
                f" {self.name} is to read and write {self.context} in all: leave such seeds out, or raise tuning.context"
            )
        return request

    def _fill(self, taken: list[tuple[int, Request]]) -> None:
        """Fills the cache of some slots with all but the last token of their prompts, which `_decode` reads first."""
        pieces = []
        for slot, request in taken:
            read_first = request.prompt[:-1]
            pieces += [(read_first[start : start + PIECE], slot, start) for start in range(0, len(read_first), PIECE)]
            self.work.prompt_tokens += len(read_first)
        for start in range(0, len(pieces), self._pieces):
            self._read_blocks(pieces[start : start + self._pieces])

    def _read_blocks(self, pieces: list[tuple[np.ndarray, int, int]]) -> None:
        tokens_NP = np.zeros((self._pieces, PIECE), np.int32)
        slots_N = np.full(self._pieces, self.slots, np.int32)  # out of bounds: a block without a prompt is dropped
        starts_N = np.zeros(self._pieces, np.int32)
        for row, (tokens, slot, start) in enumerate(pieces):
            tokens_NP[row, : len(tokens)] = tokens
            slots_N[row], starts_N[row] = slot, start
        self.work.read_tokens += tokens_NP.size
        with activations(self.mesh):
            self._caches = self._read(self._parameters, self._caches, tokens_NP, slots_N, starts_N)

    def _call(self, taken: list[tuple[int, Request]], waiting: bool) -> Outputs:
        """Has tokens generated in all slots, and does not wait for them.

        Args:
          taken: slots and the requests that they begin with.
          waiting: whether requests wait for free slots; without any, nothing is gained by an early end.
        """
        rows, admitted_B = idle_rows(self.slots), np.zeros(self.slots, bool)
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
        patience = np.int32(max(1, int(self.slots * PATIENCE)) if waiting else self.slots)
        with activations(self.mesh):
            self._caches, self._slots, outputs = self._decode(
                *(self._parameters, self._caches, self._slots, rows, admitted_B, patience)
            )
        self.work.calls += 1
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
            entry.pieces.append(found.tokens[slot, :count].copy())
            entry.logprob += float(found.logprobs[slot])
            self.work.generated += count
            if found.finish[slot] != RUNNING:
                entry.done = True
                tokens = np.concatenate(entry.pieces)
                finish = FINISH[int(found.finish[slot])]
                yield slot, Completion(request, tokens[: len(tokens) - (finish == "end")], finish, entry.logprob)


def block_length(context: int) -> int:
    """Positions a block of the cache: 64, or more to have at most 16 blocks."""
    return 64 * max(1, -(-context // (16 * 64)))
