"""The compiled step of the engine: generating some tokens in all slots.

Legend: B slots, Z pages that a slot can hold, T tokens of one call, V vocabulary, W periods looked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from sbp_jax.config import Model
from sbp_jax.generation.loops import PERIOD, copies_of
from sbp_jax.generation.sampling import row_keys, sample
from sbp_jax.model.cached_attention import Attend, held
from sbp_jax.model.incremental import Caches, empty_caches, extend, next_logits
from sbp_jax.model.parameters import Parameters

RUNNING, END, LENGTH, LOOP = range(4)  # how a slot stands
# Tokens in a row that equal the one a period before them where a circle closes.
NEEDED_W = np.array([(copies_of(period) - 1) * period for period in range(1, PERIOD + 1)], np.int32)


class Rows(NamedTuple):
    """What a request puts into a slot, and what becomes of it.

    Attributes:
      tokens: int32 [B], the last token, which is not in the cache yet.
      positions: int32 [B], tokens before it.
      remaining: int32 [B], tokens to generate; 0: the slot is idle.
      origins: uint32 [B, 3], counters of its random keys.
      temperature: float32 [B]; with top_p and top_k as `Sampling` has them.
      top_p: float32 [B].
      top_k: int32 [B].
    """

    tokens: Any
    positions: Any
    remaining: Any
    origins: Any
    temperature: Any
    top_p: Any
    top_k: Any


class Slots(NamedTuple):
    """What generation knows of each slot, beside its cache.

    Attributes:
      rows: the requests.
      window: int32 [B, W], the last generated tokens, the last one first; -1 before the beginning.
      matches: int32 [B, W], tokens in a row that equal the one so many tokens, 1 to W, before them.
      logprobs: float32 [B], log probability of what was generated.
    """

    rows: Rows
    window: Any
    matches: Any
    logprobs: Any


class Outputs(NamedTuple):
    """What a call generated.

    Attributes:
      tokens: int32 [B, T].
      counts: int32 [B], how many of them count.
      logprobs: float32 [B], log probability of all that the request has generated.
      finite: bool [B], whether all their logits were numbers.
      finish: int32 [B], how the slot stands: RUNNING, END, LENGTH or LOOP; RUNNING for an idle one.
      steps: int32, tokens that a slot which ran throughout has generated.
    """

    tokens: Array
    counts: Array
    logprobs: Array
    finite: Array
    finish: Array
    steps: Array


def idle_rows(count: int) -> Rows:
    """Host arrays for slots that generate nothing."""
    tokens, positions, remaining, top_k = (np.zeros(count, np.int32) for _ in range(4))
    temperature, top_p = (np.ones(count, np.float32) for _ in range(2))
    return Rows(tokens, positions, remaining, np.zeros((count, 3), np.uint32), temperature, top_p, top_k)


def idle_slots(count: int) -> Slots:
    return Slots(
        idle_rows(count),
        np.full((count, PERIOD), -1, np.int32),
        np.zeros((count, PERIOD), np.int32),
        np.zeros(count, np.float32),
    )


def decode(
    config: Model,
    vocabulary: int,
    steps: int,
    end_of_document: int,
    valid_V: np.ndarray,
    seed: int,
    circles: bool,
    attend: Attend,
    settle: Callable[..., Caches],
    parameters: Parameters,
    caches: Caches,
    slots: Slots,
    admitted: Rows,
    admitted_B: Bool[Array, "B"],
    table_BZ: Int[Array, "B Z"],
) -> tuple[Caches, Slots, Outputs]:
    """Generates so many tokens in each slot, fewer where its document ends or nothing remains to be generated.

    A call never ends before all slots have: where the tokens of a request move to the cache must not depend on others.

    Args:
      steps: T.
      valid_V: tokens that may be chosen.
      circles: whether a text that goes round in a circle is ended.
      settle: one of those of `incremental`.
      admitted: what the slots of `admitted_B` begin with.
      table_BZ: the pages of each slot, for all that it holds and will.
    """
    count = len(admitted_B)
    begun = Slots(admitted, *idle_slots(count)[1:])
    slots = jax.tree.map(lambda old, new: _where(admitted_B, new, old), slots, begun)
    rows = slots.rows
    keys_B = row_keys(seed, rows.origins)
    lengths_B, limits = rows.positions, (rows.temperature, rows.top_p, rows.top_k)
    pages, _, _, positions = caches[0].keys.shape
    holding = held(table_BZ, lengths_B, pages, positions)

    def unfinished(state: tuple) -> Array:
        t, slots, _, _ = state
        return (t < steps) & jnp.any(slots.rows.remaining > 0)

    def step(state: tuple) -> tuple:
        t, slots, recent, outputs = state
        rows = slots.rows
        active_B = rows.remaining > 0
        places_B = lengths_B + t
        hidden_BD, recent = extend(config, parameters, rows.tokens, places_B, caches, holding, recent, t, attend)
        logits_BV = next_logits(config, vocabulary, parameters, hidden_BD)
        step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, places_B + 1)
        tokens_B, token_logprobs_B, finite_B = sample(logits_BV, step_keys_B, jnp.asarray(valid_V), *limits)
        window_BW, matches_BW = _follow(slots.window, slots.matches, tokens_B)
        ended_B = tokens_B == end_of_document
        looped_B = jnp.any(matches_BW >= NEEDED_W, axis=1) & ~ended_B & circles
        spent_B = rows.remaining == 1
        finish_B = jnp.select([ended_B, looped_B, spent_B], [END, LOOP, LENGTH], RUNNING)
        logprobs_B = slots.logprobs + jnp.where(active_B, token_logprobs_B, 0.0)
        outputs = Outputs(
            jax.lax.dynamic_update_slice_in_dim(outputs.tokens, tokens_B[:, None], t, axis=1),
            outputs.counts + active_B,
            logprobs_B,
            outputs.finite & (finite_B | ~active_B),
            jnp.where(active_B, finish_B, outputs.finish),
            outputs.steps + 1,
        )
        remaining_B = jnp.where(active_B & (finish_B == RUNNING), rows.remaining - 1, 0)
        slots = Slots(rows._replace(tokens=tokens_B, remaining=remaining_B), window_BW, matches_BW, logprobs_B)
        return t + 1, slots, recent, outputs

    zeros_B = jnp.zeros(count, jnp.int32)
    nothing = (zeros_B, jnp.zeros(count, jnp.float32), jnp.ones(count, bool), zeros_B, jnp.int32(0))
    outputs = Outputs(jnp.zeros((count, steps), jnp.int32), *nothing)
    recent = empty_caches(config, count, steps)
    _, slots, recent, outputs = jax.lax.while_loop(unfinished, step, (jnp.int32(0), slots, recent, outputs))
    caches = settle(caches, recent, holding, outputs.counts)
    return caches, slots._replace(rows=slots.rows._replace(positions=lengths_B + outputs.counts)), outputs


def _follow(window_BW: Array, matches_BW: Array, tokens_B: Array) -> tuple[Array, Array]:
    """The window and the matches with one more token."""
    matches_BW = jnp.where(window_BW == tokens_B[:, None], matches_BW + 1, 0)
    return jnp.concatenate([tokens_B[:, None], window_BW[:, :-1]], axis=1), matches_BW


def _where(mask_B: Array, new: Array, old: Array) -> Array:
    return jnp.where(mask_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
