"""The one template of the synthesizer: E d1 S d2 E, with E the end-of-document token and S the separator."""

import numpy as np


def prompt(document: np.ndarray, end_of_document: int, separator: int) -> np.ndarray:
    """What the synthesizer reads before it writes d2: E d1 S.

    Args:
      document: int [n], the tokens of d1.

    Returns:
      int32 [n + 2].
    """
    tokens = np.empty(len(document) + 2, np.int32)
    tokens[0], tokens[1:-1], tokens[-1] = end_of_document, document, separator
    return tokens
