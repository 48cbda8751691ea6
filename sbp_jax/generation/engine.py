"""Continuous batching: a fixed number of slots generate together, and a slot that finishes takes the next request.

All shapes are fixed, so that two programs are compiled once each: `_prefill` reads a few prompts into slots, `_decode`
generates some tokens in all slots. What a request yields depends on itself, the weights and these shapes alone: no
reduction runs over rows, and random keys are counters.

Legend: B slots, G prompts read together, P prompt positions, S cache positions, T tokens of one `_decode`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt

from sbp_jax.config import Model, Synthesis
from sbp_jax.errors import SbpError
from sbp_jax.generation.sampling import row_keys, sample
from sbp_jax.model.decoder import Cache, Decoder, empty_cache
from sbp_jax.model.parameters import Parameters, abstract, bind, place, to_compute_dtype
from sbp_jax.parallel.sharding import activations, sharding
from sbp_jax.text.tokenizer import TextTokenizer

CACHE_DIMENSIONS = (None, None, "batch", "kv_heads", None, None)


@dataclass(frozen=True)
class Request:
    """One document to generate.

    Attributes:
      number: what the caller knows it by.
      ordinal: ordinal of the seed document; with `sample` it makes the random keys.
      sample: sample number.
      prompt: int32 [n], at least two tokens.
      limit: most tokens to generate, the closing end_of_document included.
    """

    number: int
    ordinal: int
    sample: int
    prompt: np.ndarray
    limit: int


@dataclass(frozen=True)
class Completion:
    """What was generated.

    Attributes:
      request: what was asked.
      tokens: int32 [n], without the closing end_of_document.
      finish: "end" at end_of_document, "length" at the request's limit.
      logprob: natural log probability of all that was generated, the closing token included, at temperature 1.
    """

    request: Request
    tokens: np.ndarray
    finish: str
    logprob: float


@dataclass
class _Slot:
    request: Request
    pieces: list[np.ndarray] = field(default_factory=list)
    generated: int = 0
    logprob: float = 0.0


class Engine:
    """A model on its devices with a cache for `slots` sequences."""

    def __init__(
        self,
        config: Model,
        parameters: Parameters,
        tokenizer: TextTokenizer,
        synthesis: Synthesis,
        *,
        context: int,
        mesh: Mesh,
        slots: int,
        decode_steps: int,
        name: str,
    ):
        """Places parameters and an empty cache; compiles nothing yet.

        Args:
          parameters: arrays of the host, or of the devices, as `huggingface.load` gives them.
          tokenizer: its special tokens end documents and are never chosen, respectively.
          context: most tokens of a prompt and what it is continued by.
          decode_steps: tokens generated between two looks at what has finished.
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
        self.mesh, self.slots, self.name = mesh, slots, name
        self.end_of_document = tokenizer.end_of_document
        self.group = max(1, slots // 8)
        self.block = block_length(context)
        blocks = -(-context // self.block)
        valid_V = np.arange(vocabulary) < tokenizer.vocab_size
        valid_V[tokenizer.separator] = False

        target = to_compute_dtype(config, abstract(config, vocabulary, mesh))  # once instead of at each step
        self._parameters = place(parameters, target)
        shape = jax.eval_shape(partial(empty_cache, config, slots, blocks, self.block))
        placed = jax.tree.map(lambda leaf: sharding(CACHE_DIMENSIONS, leaf.shape, mesh), shape)
        self._cache = jax.jit(partial(empty_cache, config, slots, blocks, self.block), out_shardings=placed)()
        everywhere = NamedSharding(mesh, PartitionSpec())
        weights = jax.tree.map(lambda leaf: leaf.sharding, target)
        self._prefill = jax.jit(
            partial(_prefill, partial(bind, config, vocabulary)),
            donate_argnums=1,
            in_shardings=(weights, placed, everywhere, everywhere, everywhere),
            out_shardings=placed,
        )
        self._decode = jax.jit(
            partial(_decode, partial(bind, config, vocabulary), decode_steps, self.end_of_document, valid_V, synthesis),
            donate_argnums=1,
            in_shardings=(weights, placed, *[everywhere] * 5),
            out_shardings=(placed, *[everywhere] * 4),
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields completions as they finish; requests are taken in order, as slots become free.

        Raises:
          SbpError: logits that are not finite.
        """
        pending = iter(requests)
        busy: dict[int, _Slot] = {}
        free = list(range(self.slots))
        state = _SlotState(self.slots)
        while True:
            while len(free) >= self.group and (group := list(islice(pending, self.group))):
                numbers = [free.pop() for _ in group]
                self._read(group, numbers)
                for slot, request in zip(numbers, group, strict=True):
                    busy[slot] = _Slot(request)
                    state.admit(slot, request)
            if not busy:
                return
            for slot in self._advance(state, busy):
                done = busy.pop(slot)
                state.remaining[slot] = state.positions[slot] = 0
                free.append(slot)
                yield _completion(done, self.end_of_document)

    def _read(self, group: list[Request], slots: list[int]) -> None:
        """Fills the cache of some slots with all but the last token of their prompts, which `_decode` reads first."""
        tokens_GP = np.zeros((self.group, self._cache.keys.shape[1] * self.block), np.int32)
        slots_G = np.full(self.group, self.slots, np.int32)  # out of bounds: a row without a request is dropped
        slots_G[: len(slots)] = slots
        for row, request in enumerate(group):
            tokens_GP[row, : len(request.prompt) - 1] = request.prompt[:-1]
        chunks = np.int32(-(-max(len(request.prompt) - 1 for request in group) // self.block))
        with activations(self.mesh):
            self._cache = self._prefill(self._parameters, self._cache, tokens_GP, slots_G, chunks)

    def _advance(self, state: "_SlotState", busy: dict[int, _Slot]) -> list[int]:
        """Generates in all slots; returns those that finished."""
        blocks = np.int32(-(-int(state.positions.max()) // self.block))
        inputs = (state.tokens, state.positions, state.remaining, state.origins, blocks)
        with activations(self.mesh):
            self._cache, *outputs = self._decode(self._parameters, self._cache, *inputs)
        tokens_BT, counts_B, logprobs_B, finite_B = jax.device_get(outputs)
        finished = []
        for slot, entry in busy.items():
            if not finite_B[slot]:
                request = entry.request
                raise SbpError(
                    f"{self.name} gives logits that are no finite numbers for seed document {request.ordinal},"
                    f" sample {request.sample}; its training diverged: lower tuning.peak_lr, or use another checkpoint"
                )
            count = int(counts_B[slot])
            entry.pieces.append(tokens_BT[slot, :count].copy())
            entry.generated += count
            entry.logprob += float(logprobs_B[slot])
            last = int(tokens_BT[slot, count - 1])
            if last == self.end_of_document or entry.generated == entry.request.limit:
                finished.append(slot)
            state.tokens[slot] = last
        state.positions += counts_B
        state.remaining -= counts_B
        return finished


class _SlotState:
    """What `_decode` is told of each slot: last token, tokens before it, tokens to go, counters of its key."""

    def __init__(self, slots: int):
        self.tokens = np.zeros(slots, np.int32)
        self.positions = np.zeros(slots, np.int32)
        self.remaining = np.zeros(slots, np.int32)
        self.origins = np.zeros((slots, 3), np.uint32)

    def admit(self, slot: int, request: Request) -> None:
        self.tokens[slot] = request.prompt[-1]
        self.positions[slot] = len(request.prompt) - 1
        self.remaining[slot] = request.limit
        self.origins[slot] = (request.ordinal & 0xFFFFFFFF, request.ordinal >> 32, request.sample)


def block_length(context: int) -> int:
    """Positions a block of the cache, and of a prompt read at a time: 64, or more to have at most 16 blocks."""
    return 64 * max(1, -(-context // (16 * 64)))


def _completion(slot: _Slot, end_of_document: int) -> Completion:
    tokens = np.concatenate(slot.pieces)
    if tokens[-1] == end_of_document:
        return Completion(slot.request, tokens[:-1], "end", slot.logprob)
    return Completion(slot.request, tokens, "length", slot.logprob)


def _prefill(
    bound: partial[Decoder],
    parameters: Parameters,
    cache: Cache,
    tokens_GP: Int[Array, "G P"],
    slots_G: Int[Array, "G"],
    chunks: Int[Array, ""],
) -> Cache:
    """Reads prompts, a block at a time, and puts their keys and values into slots of the cache."""
    model = bound(parameters)
    rows, blocks, block = tokens_GP.shape[0], cache.keys.shape[1], cache.keys.shape[-1]

    def read(chunk: Array, past: Cache) -> Cache:
        tokens_GC = jax.lax.dynamic_slice_in_dim(tokens_GP, chunk * block, block, axis=1)
        positions_GC = jnp.broadcast_to(chunk * block + jnp.arange(block), tokens_GC.shape)
        lengths_G = jnp.broadcast_to(chunk * block, (rows,))
        fresh = empty_cache(model.config, rows, 1, block)
        _, fresh = model.extend(tokens_GC, positions_GC, past, lengths_G, chunk, fresh, 0)
        store = partial(jax.lax.dynamic_update_slice_in_dim, start_index=chunk, axis=1)
        return jax.tree.map(store, past, fresh)

    prompts = jax.lax.fori_loop(0, chunks, read, empty_cache(model.config, rows, blocks, block))
    return jax.tree.map(lambda whole, part: whole.at[:, :, slots_G].set(part, mode="drop"), cache, prompts)


def _decode(
    bound: partial[Decoder],
    steps: int,
    end_of_document: int,
    valid_V: np.ndarray,
    synthesis: Synthesis,
    parameters: Parameters,
    cache: Cache,
    tokens_B: Int[Array, "B"],
    positions_B: Int[Array, "B"],
    remaining_B: Int[Array, "B"],
    origins_B3: UInt[Array, "B 3"],
    blocks: Int[Array, ""],
) -> tuple[Cache, Int[Array, "B T"], Int[Array, "B"], Float[Array, "B"], Array]:
    """Generates up to `steps` tokens in each slot, until its document ends or nothing remains to be generated.

    Returns:
      The cache; the tokens; how many of them count; their log probability; whether all their logits were finite.
    """
    model = bound(parameters)
    rows = tokens_B.shape[0]
    keys_B = row_keys(synthesis.seed, origins_B3)

    def unfinished(state: tuple) -> Array:
        return (state[0] < steps) & jnp.any(state[2])

    def step(state: tuple) -> tuple:
        t, tokens_B, active_B, recent, output_BT, counts_B, logprobs_B, finite_B = state
        places_B = positions_B + t
        hidden_B1D, recent = model.extend(tokens_B[:, None], places_B[:, None], cache, positions_B, blocks, recent, t)
        logits_BV = model.logits(hidden_B1D[:, 0])
        step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, places_B + 1)
        tokens_B, token_logprobs_B, token_finite_B = sample(
            logits_BV, step_keys_B, jnp.asarray(valid_V), synthesis.temperature, synthesis.top_p
        )
        output_BT = jax.lax.dynamic_update_slice_in_dim(output_BT, tokens_B[:, None], t, axis=1)
        counts_B = counts_B + active_B
        logprobs_B = logprobs_B + jnp.where(active_B, token_logprobs_B, 0.0)
        finite_B = finite_B & (token_finite_B | ~active_B)
        active_B = active_B & (tokens_B != end_of_document) & (counts_B < remaining_B)
        return t + 1, tokens_B, active_B, recent, output_BT, counts_B, logprobs_B, finite_B

    zeros_B = jnp.zeros(rows, jnp.int32)
    start = (
        *(jnp.int32(0), tokens_B, remaining_B > 0, empty_cache(model.config, rows, 1, steps)),
        *(jnp.zeros((rows, steps), jnp.int32), zeros_B, jnp.zeros(rows, jnp.float32), jnp.ones(rows, bool)),
    )
    _, _, _, recent, output_BT, counts_B, logprobs_B, finite_B = jax.lax.while_loop(unfinished, step, start)
    return _settle(cache, recent, positions_B), output_BT, counts_B, logprobs_B, finite_B


def _settle(cache: Cache, recent: Cache, positions_B: Int[Array, "B"]) -> Cache:
    """Moves `recent` to its places in the cache; what stands beyond a row's end is overwritten later."""
    block, steps = cache.keys.shape[-1], recent.keys.shape[-1]
    places_BT = positions_B[:, None] + jnp.arange(steps)
    rows_B1 = jnp.arange(len(positions_B))[:, None]
    where = (slice(None), places_BT // block, rows_B1, slice(None))
    keys_BTLKH, values_BTLKH = recent.keys[:, 0].transpose(1, 4, 0, 2, 3), recent.values[:, 0].transpose(1, 3, 0, 2, 4)
    return Cache(
        cache.keys.at[(*where, slice(None), places_BT % block)].set(keys_BTLKH, mode="drop"),
        cache.values.at[(*where, places_BT % block)].set(values_BTLKH, mode="drop"),
    )
