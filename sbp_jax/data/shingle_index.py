"""An index of very many shingles, to be asked which of some others are among them.

A Bloom filter in blocks of 512 bits, one to a cache line, answers for nearly all that are not. Where the shingles fit
into memory, they are looked up behind it, and the answer is exact; where they do not, the filter's answer stands. Then
it takes a share of others for known ones by mistake, which follows from how full its blocks are, and misses none. Both
lie in files and are mapped into memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath

from sbp_jax.artifacts import Output
from sbp_jax.data.by_hash import by_hash
from sbp_jax.data.screened import created, mapped, save_parts
from sbp_jax.parallel.machine import memory
from sbp_jax.text.shingles import among, distinct, mixed

BITS, BLOCK = 16, 512  # bits of the filter for each shingle, and of a block
PROBES = 7  # bits of a block that a shingle sets
PART = 4  # of the machine's memory, over which an exact index is no longer held
AT_ONCE = 1 << 16  # shingles that are set at a time


@dataclass(frozen=True)
class ShingleIndex:
    """The filter, and the shingles behind it.

    Attributes:
      table: uint8, the filter's blocks.
      hashes: uint64, sorted and unique; None where the filter alone answers.
      shingles: how many are in it.
      false_positives: probability that a shingle which is not in it is taken for one that is.
    """

    table: np.ndarray
    hashes: np.ndarray | None
    shingles: int
    false_positives: float

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """Whether each shingle is in the index, bool."""
        blocks = len(self.table) * 8 // BLOCK
        firsts, spread = _blocks(hashes, blocks) * np.uint64(BLOCK), mixed(hashes)
        left = np.arange(len(hashes))
        for probe in range(PROBES):
            bits = firsts[left] + _bit(spread[left], probe)
            left = left[(self.table[bits >> np.uint64(3)] >> (bits & np.uint64(7)).astype(np.uint8)) & 1 > 0]
        if self.hashes is not None:
            left = left[among(hashes[left], self.hashes)]
        found = np.zeros(len(hashes), bool)
        found[left] = True
        return found


def is_exact(kind: str, shingles: int) -> bool:
    """Whether so many shingles are held themselves.

    Args:
      kind: exact, bloom, or auto: exact where they and the filter take no more than a part of the memory.
    """
    return kind == "exact" or (kind == "auto" and shingles * (8 + BITS / 8) <= memory() / PART)


def build(scratch: Output, name: str, files: Sequence[epath.Path], exact: bool) -> ShingleIndex:
    """Makes an index, or finds the one that an earlier run made.

    Args:
      scratch: where it is kept, in files whose names begin with `name`.
      files: shingles of shards, sorted.
      exact: whether to keep the shingles behind the filter.
    """
    parts = by_hash(scratch, f"{name}-distinct", files, distinct)
    shingles = sum(map(len, parts))
    if not scratch.has(f"{name}-filter.npy"):
        with scratch.writing(f"{name}-filter.npy") as writing:
            blocks = max(1, -(-shingles * BITS // BLOCK))
            with created(writing.path, np.dtype(np.uint8), blocks * BLOCK // 8) as table:
                table[:] = 0
                for part in parts:
                    _set(table, part)
    if exact and not scratch.has(f"{name}-all.npy"):
        save_parts(scratch, f"{name}-all.npy", parts)
    false_positives = 0.0 if exact else _false_positives(mapped(scratch.path / f"{name}-filter.npy"))
    return opened(scratch.path, name, exact, shingles, false_positives)


def opened(folder: epath.Path, name: str, exact: bool, shingles: int, false_positives: float) -> ShingleIndex:
    """An index that `build` made in this folder."""
    hashes = mapped(folder / f"{name}-all.npy") if exact else None
    return ShingleIndex(mapped(folder / f"{name}-filter.npy"), hashes, shingles, false_positives)


def _blocks(hashes: np.ndarray, blocks: int) -> np.ndarray:
    """The block of each shingle, by its high bits: in sorted order one block comes after another."""
    return ((hashes >> np.uint64(32)) * np.uint64(blocks)) >> np.uint64(32)


def _bit(spread: np.ndarray, probe: int) -> np.ndarray:
    return (spread >> np.uint64(9 * probe)) & np.uint64(BLOCK - 1)


def _set(table: np.ndarray, hashes: np.ndarray) -> None:
    blocks = len(table) * 8 // BLOCK
    for start in range(0, len(hashes), AT_ONCE):
        some = np.array(hashes[start : start + AT_ONCE])
        places, spread = _blocks(some, blocks), mixed(some)
        first, last = int(places[0]), int(places[-1]) + 1
        flags = np.zeros((last - first) * BLOCK, bool)
        for probe in range(PROBES):
            flags[(places - np.uint64(first)) * np.uint64(BLOCK) + _bit(spread, probe)] = True
        table[first * BLOCK // 8 : last * BLOCK // 8] |= np.packbits(flags, bitorder="little")


def _false_positives(table: np.ndarray) -> float:
    """Probability that all bits of another shingle are set: the mean over the blocks."""
    total = 0.0
    for start in range(0, len(table), AT_ONCE * BLOCK // 8):
        some = np.array(table[start : start + AT_ONCE * BLOCK // 8]).reshape(-1, BLOCK // 8)
        total += float(np.sum((np.bitwise_count(some).sum(axis=1) / BLOCK) ** PROBES))
    return total * BLOCK / 8 / len(table)
