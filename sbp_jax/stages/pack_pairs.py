"""Stage `pack_pairs`: the accepted pairs of one part, shuffled, rendered and packed into rows."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data.packing import pack_pairs
from sbp_jax.data.rows import write_rows
from sbp_jax.errors import SbpError
from sbp_jax.progress import Counter, progress
from sbp_jax.text.tokenizer import load

VERSION = 2


def run(
    output: Output,
    *,
    pairs: Artifact,
    tokens: Artifact,
    tokenizer: Artifact,
    settings: Tokenizer,
    part: str,
    validation: float,
    context: int,
    seed: int = 0,
    execution: Execution,
) -> Artifact:
    """Writes the rows of one part of the pairs, "train" or "validation".

    The held-out documents are chosen by a seeded hash of their ordinals. Pairs that start from one are validation, and
    training pairs have none on either side: the held-out loss is on seeds that tuning has never read.

    Raises:
      SbpError: an unknown part, a part without pairs, or a pair that does not fit the context.
    """
    chosen = _chosen(pairs, part, validation, seed)
    if len(chosen) == 0:
        raise SbpError(f"no pairs in the {part} part; change tuning.validation ({validation:g}) or accept more pairs")
    longest = pc.max(chosen["tokens"]).as_py()
    if longest > context + 1:
        raise SbpError(
            f"a pair of {longest} tokens exceeds tuning.context = {context}; make the pairs for this context"
        )
    text_tokenizer = load(tokenizer.file("tokenizer.json"), settings)
    with progress(output.label, len(chosen), "pairs") as counter:
        rendered = _rendered(chosen, tokens, counter)
        packed = pack_pairs(rendered, context, text_tokenizer.end_of_document, text_tokenizer.separator)
        totals = write_rows(output, packed)
    corpus = tokens.stats
    token_bytes = corpus["bytes"] / (corpus["tokens"] + corpus["documents"])  # a document's end is a token too
    return output.finish(totals | {"pairs": len(chosen), "context": context, "token_bytes": token_bytes})


def _chosen(pairs: Artifact, part: str, validation: float, seed: int) -> pa.Table:
    """The accepted pairs of the part, in the order of a seeded hash."""
    if part not in ("train", "validation"):
        raise SbpError(f"unknown part {part!r} of the pairs; it may be train or validation")
    table = parquet.read(pairs, ["d1", "d2", "tokens", "verdict"])
    table = table.filter(pc.equal(table["verdict"], "accepted"))
    seeds = np.unique(table["d1"].to_numpy())
    held_out = seeds[_hash(f"held out {seed}", seeds[:, None]) / 2.0**64 < validation]
    d1_held_out = np.isin(table["d1"].to_numpy(), held_out)
    d2_held_out = np.isin(table["d2"].to_numpy(), held_out)
    table = table.filter(pa.array(d1_held_out if part == "validation" else ~(d1_held_out | d2_held_out)))
    both = np.stack([table["d1"].to_numpy(), table["d2"].to_numpy()], axis=1)
    # Pairs are unique, so that stable sorting by hash is a function of the set of pairs up to a collision of hashes.
    return table.take(pa.array(np.argsort(_hash(f"order {seed}", both), kind="stable")))


def _hash(purpose: str, rows: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row of ordinals; hashes of two purposes have nothing to do with each other."""
    seed = xxhash.xxh3_64_intdigest(purpose.encode())
    data = np.ascontiguousarray(rows, "<i8")
    return np.fromiter((xxhash.xxh3_64_intdigest(row.tobytes(), seed) for row in data), np.uint64, len(data))


def _rendered(pairs: pa.Table, tokens: Artifact, counter: Counter) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    records = arrayrecord.source(tokens)
    for batch in pairs.to_batches(1024):
        for d1, d2 in zip(batch["d1"].to_pylist(), batch["d2"].to_pylist(), strict=True):
            yield d2, np.frombuffer(records[d1], "<i4"), np.frombuffer(records[d2], "<i4")
        counter.advance(batch.num_rows)
