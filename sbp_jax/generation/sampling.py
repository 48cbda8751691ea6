"""Choosing next tokens: temperature, nucleus, and random keys that are counters.

Legend: B rows, V vocabulary, W blocks of the vocabulary, I tokens of a block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt

BLOCK = 128  # tokens a block of the two-step draw


def row_keys(seed: int, origins_B3: UInt[Array, "B 3"]) -> Key[Array, "B"]:
    """Random key of each row: a function of the seed and of its own counters, whoever its batch-mates are.

    Args:
      seed: `synthesis.seed`.
      origins_B3: low and high half of the seed document's ordinal, and the sample number.
    """

    def fold(counters_3: Array) -> Array:
        key = jax.random.key(seed, impl="threefry2x32")
        for counter in counters_3:
            key = jax.random.fold_in(key, counter)
        return key

    return jax.vmap(fold)(origins_B3)


def sample(
    logits_BV: Float[Array, "B V"],
    keys_B: Key[Array, "B"],
    valid_V: Bool[Array, "V"],
    temperature_B: Float[Array, "B"],
    top_p_B: Float[Array, "B"],
    top_k_B: Int[Array, "B"],
) -> tuple[Int[Array, "B"], Float[Array, "B"], Bool[Array, "B"]]:
    """Draws a token for each row from the most probable ones of its distribution (Holtzman et al. 2020).

    Args:
      logits_BV: float32.
      keys_B: the key of each row at this position.
      valid_V: tokens that may be chosen.
      temperature_B: 0 chooses the most probable token.
      top_p_B: the nucleus is the least set of most probable tokens that holds this much probability, and their ties.
      top_k_B: of the most probable tokens, so many and their ties; 0: all. Both limits hold where both are given, each
        of the whole distribution.

    Returns:
      The tokens; their natural log probabilities at temperature 1 and without truncation; whether a row's logits
      were numbers (the token of a row whose logits were not means nothing).
    """
    logits_BV = jnp.where(valid_V, logits_BV, -jnp.inf)
    greatest_B = jnp.max(logits_BV, axis=-1)
    sums_B = jnp.sum(jnp.exp(logits_BV - greatest_B[:, None]), axis=-1)
    finite_B = jnp.isfinite(greatest_B) & jnp.isfinite(sums_B)
    places_V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)
    best_BV = jnp.where(logits_BV == greatest_B[:, None], places_V, len(places_V) - 1)
    best_B = jnp.min(best_BV, axis=-1)  # argmax is a reduction of pairs, which XLA does not vectorise on a CPU
    greedy_B = temperature_B == 0

    def drawn() -> Array:
        scaled_BV = (logits_BV - greatest_B[:, None]) / jnp.where(greedy_B, 1.0, temperature_B)[:, None]
        return _truncated(jnp.exp(scaled_BV), keys_B, top_p_B, top_k_B, best_B, greedy_B | ~finite_B)

    tokens_B = jax.lax.cond(jnp.all(greedy_B), lambda: best_B, drawn)
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return tokens_B, chosen_B - greatest_B - jnp.log(sums_B), finite_B


def _truncated(weights_BV: Array, keys_B: Array, top_p_B: Array, top_k_B: Array, best_B: Array, done_B: Array) -> Array:
    """Draws by rejection, without a sort; a row that is done keeps its best token.

    A token is in the nucleus if those more probable hold less than top_p, and among the first top_k if fewer than that
    are more probable. One that is not is a lower bound: no token up to its probability may be chosen, so the next draw
    leaves them out. What is accepted has the truncated distribution, since no draw ever leaves out a token of it.
    """
    totals_B = jnp.sum(weights_BV, axis=-1)
    whole_B = (top_p_B >= 1) & (top_k_B == 0)

    def refused(state: tuple[Array, ...]) -> Array:
        return ~jnp.all(state[2])

    def attempt(state: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
        number, tokens_B, done_B, bounds_B = state
        drawn_B = _draw(jnp.where(weights_BV > bounds_B[:, None], weights_BV, 0.0), keys_B, number)
        drawn_weights_B = jnp.take_along_axis(weights_BV, drawn_B[:, None], axis=-1)[:, 0]
        above_BV = weights_BV > drawn_weights_B[:, None]
        above_B = jnp.sum(jnp.where(above_BV, weights_BV, 0.0), axis=-1)
        nucleus_B = (above_B < top_p_B * totals_B) & ((top_k_B == 0) | (jnp.sum(above_BV, axis=-1) < top_k_B))
        accepted_B = nucleus_B | (above_B == 0) | whole_B
        tokens_B = jnp.where(done_B, tokens_B, drawn_B)
        return number + 1, tokens_B, done_B | accepted_B, jnp.where(accepted_B, bounds_B, drawn_weights_B)

    start = (jnp.int32(0), best_B, done_B, jnp.full_like(totals_B, -1.0))
    return jax.lax.while_loop(refused, attempt, start)[1]


def _draw(weights_BV: Array, keys_B: Array, number: Array | int) -> Array:
    """Draws tokens in proportion to their weights: a block by its sum, then a token in it."""
    rows, vocabulary = weights_BV.shape
    blocks = -(-vocabulary // BLOCK)
    padded_BV = jnp.pad(weights_BV, ((0, 0), (0, blocks * BLOCK - vocabulary)))
    weights_BWI = padded_BV.reshape(rows, blocks, BLOCK)
    uniforms_B2 = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number), (2,)))(keys_B)
    block_B = _invert(jnp.sum(weights_BWI, axis=-1), uniforms_B2[:, 0])
    weights_BI = jnp.take_along_axis(weights_BWI, block_B[:, None, None], axis=1)[:, 0]
    return jnp.minimum(block_B * BLOCK + _invert(weights_BI, uniforms_B2[:, 1]), vocabulary - 1)


def _invert(weights_BI: Array, uniforms_B: Array) -> Array:
    """First index whose cumulative weight exceeds a uniform share, in [0, 1), of the whole."""
    cumulative_BI = jnp.cumsum(weights_BI, axis=-1)
    targets_B = uniforms_B * cumulative_BI[:, -1]
    indices_B = jnp.sum(cumulative_BI <= targets_B[:, None], axis=-1, dtype=jnp.int32)
    return jnp.minimum(indices_B, weights_BI.shape[-1] - 1)
