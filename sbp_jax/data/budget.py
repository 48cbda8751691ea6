"""How many tokens each model trains on, and how many synthetic documents that takes."""

import math
from dataclasses import dataclass

from sbp_jax.artifacts import Artifact
from sbp_jax.config import Synthesis


@dataclass(frozen=True)
class Synthetic:
    """What has to be written for the arms.

    Attributes:
      tokens: synthetic ones that the arm with the greatest share of them trains on.
      length: tokens that a document is taken to have: the mean of a capped one, cut by `synthesis.max_new_tokens`.
      documents: to be written, more than make up the tokens, since filters reject some.
    """

    tokens: float
    length: float
    documents: int


def training_tokens(tokens: int | None, oracle: Artifact) -> int:
    """Loss-bearing targets of the base model and of every arm: `training.tokens`, or one pass over the oracle set.

    Args:
      tokens: `training.tokens`.
      oracle: the packed oracle stream.
    """
    return int(oracle.stats["targets"]) if tokens is None else tokens


def tokens_of_passes(epochs: float, synthetic_share: float, real: Artifact) -> int:
    """Targets of a run that reads its real stream so many times and has the share of synthetic targets on top."""
    return round(epochs * real.stats["targets"] / (1 - synthetic_share))


def synthetic(synthesis: Synthesis, share: float, tokens: int | None, capped: Artifact, oracle: Artifact) -> Synthetic:
    """How many documents to write.

    Args:
      share: greatest share of synthetic tokens among the arms.
      tokens: `training.tokens`.
      capped: the packed capped stream, for the mean length of a document.
      oracle: the packed oracle stream, for the token budget.
    """
    needed = share * training_tokens(tokens, oracle)
    length = min(capped.stats["targets"] / capped.stats["documents"], synthesis.max_new_tokens)
    return Synthetic(needed, length, math.ceil(needed * synthesis.oversample / length))
