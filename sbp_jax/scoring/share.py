"""A share of documents, with an interval that holds where none or all of them have what is counted."""

import math

from sbp_jax.scoring.ratio import Estimate

METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em")  # of tasks: shares of items
Z = 1.959963984540054  # of the normal distribution, for 95%


def share(having: int, documents: int) -> Estimate:
    """having / documents with Wilson's score interval (1927), 95%.

    Raises:
      ValueError: there are no documents.
    """
    if documents <= 0:
        raise ValueError("a share of no documents")
    value = having / documents
    spread = 1 + Z**2 / documents
    middle = (value + Z**2 / (2 * documents)) / spread
    half = Z / spread * math.sqrt(value * (1 - value) / documents + Z**2 / (4 * documents**2))
    low, high = (0.0 if having == 0 else middle - half), (1.0 if having == documents else middle + half)
    return Estimate(value, max(low, 0.0), min(high, 1.0))
