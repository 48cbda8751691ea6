"""When a text goes round in a circle: the one rule of all engines.

A text loops where it ends in copies of one stretch of up to PERIOD tokens: at least COPIES of them that span at least
LEAST tokens. Short stretches have to repeat more often ("...", a ruler, the spaces of a table are no loops).

Legend: T tokens.
"""

import numpy as np

PERIOD = 128  # tokens, the longest stretch
COPIES = 3  # of the stretch, the first included
LEAST = 48  # tokens that all copies span


def copies_of(period: int, copies: int = COPIES) -> int:
    """How often a stretch of so many tokens stands in a row in a loop."""
    return max(copies, -(-LEAST // period))


def loop_end(tokens: np.ndarray, period: int = PERIOD, copies: int = COPIES) -> int | None:
    """Length of the shortest beginning of a text that ends in a loop, which is where an engine stops; None: no loop.

    Args:
      tokens: int [T].
      period: tokens of the longest stretch.
      copies: of a stretch that is long enough for them to span LEAST tokens.
    """
    tokens_T = np.asarray(tokens)
    end = len(tokens_T) + 1
    for length in range(1, period + 1):
        whole = length * copies_of(length, copies)
        same = tokens_T[length : end - 1] == tokens_T[: max(0, end - 1 - length)]
        needed = whole - length  # tokens in a row that each equal the one `length` before
        if np.count_nonzero(same) < needed:
            continue
        # Where the last difference before each token is; one stands before the first.
        places = np.arange(len(same))
        differs = np.maximum.accumulate(np.where(same, -1, places))
        if len(reached := np.flatnonzero(places - differs == needed)):
            end = int(reached[0]) + length + 1
    return end if end <= len(tokens_T) else None
