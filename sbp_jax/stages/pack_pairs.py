"""Stage `pack_pairs`: the grouped pairs of one part, shuffled, rendered and packed into rows.

Shuffled on disk: each shard is sorted by a hash, then each range of hashes is read from all of them, which is little.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from etils import epath

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data.by_target import between
from sbp_jax.data.groups import MISSING
from sbp_jax.data.packing import pack_groups
from sbp_jax.data.rows import write_rows
from sbp_jax.data.screened import mapped, save
from sbp_jax.errors import SbpError
from sbp_jax.progress import Counter, progress
from sbp_jax.text.tokenizer import load

VERSION = 3
RANGE = 1 << 22  # groups of one range of hashes, on average
SHOWN = 1024  # groups between two looks at the progress


def run(
    output: Output,
    *,
    groups: Artifact,
    tokens: Artifact,
    tokenizer: Artifact,
    settings: Tokenizer,
    part: str,
    context: int,
    seed: int = 0,
    execution: Execution,
) -> Artifact:
    """Writes the rows of one part of the groups, "train" or "validation", in the order of a seeded hash.

    Memory holds the groups of one shard, or of one range of hashes.

    Raises:
      SbpError: an unknown part, a part without groups, or a group that does not fit the context.
    """
    if part not in ("train", "validation"):
        raise SbpError(f"unknown part {part!r} of the pairs; it may be train or validation")
    scratch = Output(output.path / "scratch", output.recipe, output.label)
    shards = _sorted_shards(scratch, groups, part, seed)
    count = sum(map(len, map(mapped, shards)))
    if count == 0:
        raise SbpError(f"no pairs in the {part} part; change tuning.validation or accept more pairs")
    longest = max(int(mapped(shard)["tokens"].max(initial=0)) for shard in shards)
    if longest > context + 1:
        raise SbpError(
            f"a pair of {longest} tokens exceeds tuning.context = {context}; make the pairs for this context"
        )
    text_tokenizer = load(tokenizer.file("tokenizer.json"), settings)
    with progress(output.label, count, "pairs") as counter:
        rendered = _rendered(_in_order(shards, count), tokens, counter)
        packed = pack_groups(rendered, context, text_tokenizer.end_of_document, text_tokenizer.separator)
        totals = write_rows(output, packed)
    scratch.path.rmtree()
    corpus = tokens.stats
    token_bytes = corpus["bytes"] / (corpus["tokens"] + corpus["documents"])  # a document's end is a token too
    return output.finish(totals | {"pairs": count, "context": context, "token_bytes": token_bytes})


def _sorted_shards(scratch: Output, groups: Artifact, part: str, seed: int) -> list[epath.Path]:
    """Paths of the groups of the part, as records sorted by hash, one file for each shard."""
    names = []
    for index, table in enumerate(parquet.tables(groups, ["seed", "target", "conditioning", "tokens", "part"])):
        names.append(f"sorted-{index:05d}.npy")
        if not scratch.has(names[-1]):
            chosen = table.filter(pc.equal(table["part"], part))
            save(scratch, names[-1], _records(chosen, groups.stats["conditioning"], f"order {seed}"))
    return [scratch.path / name for name in names]


def _records(groups: pa.Table, conditioning: int, purpose: str) -> np.ndarray:
    kind = [("hash", "<u8"), ("target", "<i8"), ("tokens", "<i4"), ("read", "<i8", (conditioning,))]
    records = np.empty(groups.num_rows, kind)
    records["hash"] = _hash(purpose, np.stack([groups[name].to_numpy() for name in ("seed", "target")], axis=1))
    records["target"], records["tokens"] = groups["target"].to_numpy(), groups["tokens"].to_numpy()
    sizes = pc.list_value_length(groups["conditioning"]).to_numpy()
    read = np.full((groups.num_rows, conditioning), MISSING)
    read[np.arange(conditioning) < sizes[:, None]] = pc.list_flatten(groups["conditioning"]).to_numpy()
    records["read"] = read
    # Pairs are unique, so that stable sorting by hash is a function of the set of pairs up to a collision of hashes.
    return records[np.argsort(records["hash"], kind="stable")]


def _hash(purpose: str, rows: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row of ordinals."""
    seed = xxhash.xxh3_64_intdigest(purpose.encode())
    data = np.ascontiguousarray(rows, "<i8")
    return np.fromiter((xxhash.xxh3_64_intdigest(row.tobytes(), seed) for row in data), np.uint64, len(data))


def _in_order(shards: list[epath.Path], count: int) -> Iterator[tuple[int, list[int]]]:
    """The target of each group and the documents that are read before it, by hash."""
    ranges = max(1, count // RANGE)
    for low, high in pairwise((1 << 64) * place // ranges for place in range(ranges + 1)):
        some = np.concatenate([np.array(between(mapped(shard), "hash", slice(low, high))) for shard in shards])
        for record in some[np.argsort(some["hash"], kind="stable")]:
            yield int(record["target"]), record["read"][record["read"] != MISSING].tolist()


def _rendered(
    groups: Iterator[tuple[int, list[int]]], tokens: Artifact, counter: Counter
) -> Iterator[tuple[int, list[np.ndarray], np.ndarray]]:
    records = arrayrecord.source(tokens)
    for number, (target, read) in enumerate(groups, 1):
        documents = [np.frombuffer(records[ordinal], "<i4") for ordinal in (*read, target)]
        yield target, documents[:-1], documents[-1]
        if number % SHOWN == 0:
            counter.advance(SHOWN)
