"""How much texts repeat themselves."""

import numpy as np

from sbp_jax.text.shingles import Words, rolled

LENGTH = 4  # words of an n-gram


def repetition(found: Words, length: int = LENGTH) -> np.ndarray:
    """Fraction of each text's word n-grams that repeat an earlier one, float32 [texts]; 0 where it has none."""
    lengths = np.diff(found.offsets)
    owners_W = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    hashes = rolled(found.hashes_W, length)
    whole = owners_W[: len(hashes)] == owners_W[length - 1 :][: len(hashes)]  # those that lie in one text
    # The text in the high bits, so that one sort does for all; what is left of the hash is enough within a text.
    bits = np.uint64(max(len(lengths) - 1, 1).bit_length())
    keys = (owners_W[: len(hashes)][whole] << (np.uint64(64) - bits)) | (hashes[whole] >> bits)
    keys.sort()
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    distinct = np.bincount((keys[first] >> (np.uint64(64) - bits)).astype(np.int64), minlength=len(lengths))
    totals = np.maximum(lengths - length + 1, 0)
    return ((totals - distinct) / np.maximum(totals, 1)).astype(np.float32)
