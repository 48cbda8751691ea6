"""The one template of the synthesizer: E d1 S d2 S ... S dk S target E; E ends a document, S is the separator.

Tuning and generation both take it from here. With k = 1 it is the paper's pair, E d1 S d2 E; with k = 0 a document as
the base model reads it, E target E.
"""

from collections.abc import Sequence

import numpy as np


def prompt(documents: Sequence[np.ndarray], end_of_document: int, separator: int) -> np.ndarray:
    """What is read before the target is written: E d1 S ... S dk S, or E alone.

    Args:
      documents: int [n] each, the tokens of d1 to dk.

    Returns:
      int32 [k + 1 + tokens of all documents].
    """
    parts: list[np.ndarray | list[int]] = [[end_of_document]]
    for document in documents:
        parts += (document, [separator])
    return np.concatenate(parts, dtype=np.int32)


def length(tokens: int, documents: int) -> int:
    """Tokens of the whole template, the closing E included.

    Args:
      tokens: of all documents and the target.
      documents: k.
    """
    return tokens + documents + 2
