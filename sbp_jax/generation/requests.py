"""What an engine is asked for, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the most probable token.
      top_p: the nucleus is the least set of most probable tokens that holds this much probability, and their ties.
      top_k: of the most probable tokens, so many and their ties; 0: all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Request:
    """One document to generate.

    Attributes:
      number: what the caller knows it by.
      ordinal: ordinal of the seed document, or a negative number where there is none; with `sample` it makes the
        random keys.
      sample: sample number.
      prompt: int32 [n], at least one token.
      limit: most tokens to generate, the closing end_of_document included.
      sampling: how tokens are chosen.
      stop: says of the tokens so far whether they are enough; asked between two calls, so that some more are written.
    """

    number: int
    ordinal: int
    sample: int
    prompt: np.ndarray
    limit: int
    sampling: Sampling = Sampling()
    stop: Callable[[np.ndarray], bool] | None = None


@dataclass(frozen=True)
class Completion:
    """What was generated.

    Attributes:
      request: what was asked.
      tokens: int32 [n], without the closing end_of_document.
      finish: "end" at end_of_document, "length" at the request's limit, "loop" when the text went round in a circle,
        "stop" when the request found it enough.
      logprob: natural log probability of all that was generated, the closing token included, at temperature 1 and
        without truncation.
    """

    request: Request
    tokens: np.ndarray
    finish: str
    logprob: float
