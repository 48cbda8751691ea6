"""How many tokens each model trains on."""

from sbp_jax.artifacts import Artifact


def training_tokens(tokens: int | None, oracle: Artifact) -> int:
    """Loss-bearing targets of the base model and of every arm: `training.tokens`, or one pass over the oracle set.

    Args:
      tokens: `training.tokens`.
      oracle: the packed oracle stream.
    """
    return int(oracle.stats["targets"]) if tokens is None else tokens
