"""Stage `filter`: which synthetic documents are kept, and why each of the others is not."""

from collections import Counter

import numpy as np
import pyarrow as pa
import xxhash

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Filters
from sbp_jax.data.splits import members, texts
from sbp_jax.errors import SbpError
from sbp_jax.progress import progress
from sbp_jax.text.repetition import repetition, words
from sbp_jax.text.shingles import overlap, shingles

VERSION = 2
REMEDIES = {
    "unfinished": "raise synthesis.max_new_tokens or set filters.unfinished",
    "too_short": "lower filters.min_words",
    "repetition": "raise filters.max_repetition",
    "copied": "raise filters.max_copied",
    "duplicate": "raise synthesis.temperature or synthesis.top_p",
}


def run(
    output: Output,
    *,
    synthesized: Artifact,
    documents: Artifact,
    splits: Artifact,
    filters: Filters,
    execution: Execution,
) -> Artifact:
    """Writes accepted documents to part-*, with new dense ordinals, and the others to rejected-*, with their verdict.

    Both keep the lineage and carry the scores: words, repetition, copied.

    Raises:
      SbpError: nothing is accepted.
    """
    index = _capped_shingles(output, documents, splits)
    seen: set[int] = set()
    verdicts: Counter[str] = Counter()
    with progress(output.label, synthesized.rows, "documents") as counter:
        for shard, table in enumerate(parquet.tables(synthesized)):
            scored, verdict = _judge(table, index, seen, filters)
            accepted = scored.filter(verdict == "accepted")
            first = verdicts["accepted"]
            ordinals = pa.array(range(first, first + accepted.num_rows), pa.int64())
            scored = scored.append_column("verdict", pa.array(verdict.tolist(), pa.string()))
            rejected = scored.filter(verdict != "accepted")
            accepted = accepted.set_column(accepted.schema.get_field_index("ordinal"), "ordinal", ordinals)

            def write_accepted(writing: Writing, table: pa.Table = accepted) -> None:
                parquet.write(writing, table)
                texts = table["text"].to_pylist()
                writing.stats = {"accepted": table.num_rows, "bytes": sum(len(text.encode()) for text in texts)}

            def write_rejected(writing: Writing, table: pa.Table = rejected) -> None:
                parquet.write(writing, table)
                counts = Counter(table["verdict"].to_pylist())
                writing.stats = {f"rejected_{reason}": counts[reason] for reason in REMEDIES}

            output.shard(shard, ".parquet", write_accepted)
            output.shard(shard, ".parquet", write_rejected, prefix="rejected")
            verdicts.update(verdict.tolist())
            counter.advance(table.num_rows)
    if not verdicts["accepted"]:
        raise SbpError(_nothing_accepted(output.label, verdicts))
    return output.finish({"documents": sum(verdicts.values())})


def _capped_shingles(output: Output, documents: Artifact, splits: Artifact) -> np.ndarray:
    """The shingles of all capped documents: uint64, sorted and unique."""
    capped = members(splits, "capped")
    found: list[np.ndarray] = []
    with progress(f"{output.label}: capped shingles", len(capped), "documents") as counter:
        for shard in texts(documents, capped):
            found.append(np.unique(np.concatenate([np.empty(0, np.uint64), *map(shingles, shard)])))
            counter.advance(len(shard))
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def _judge(table: pa.Table, index: np.ndarray, seen: set[int], filters: Filters) -> tuple[pa.Table, np.ndarray]:
    """The documents of a shard with their scores, and the verdict on each; `seen` collects hashes of their texts."""
    lengths, repetitions, copies, verdicts = [], [], [], []
    for text, finish in zip(table["text"].to_pylist(), table["finish"].to_pylist(), strict=True):
        found, hashes = words(text), shingles(text)
        digest = xxhash.xxh3_128_intdigest(text.encode())
        lengths.append(len(found))
        repetitions.append(repetition(found))
        copies.append(overlap(hashes, index) / max(len(hashes), 1))
        faults = {
            "unfinished": finish == "length" and filters.unfinished != "keep",
            "too_short": lengths[-1] < filters.min_words,
            "repetition": repetitions[-1] > filters.max_repetition,
            "copied": copies[-1] > filters.max_copied,
            "duplicate": digest in seen,
        }
        verdicts.append(next((reason for reason, found in faults.items() if found), "accepted"))
        seen.add(digest)
    scores = {
        "words": pa.array(lengths, pa.int32()),
        "repetition": pa.array(repetitions, pa.float32()),
        "copied": pa.array(copies, pa.float32()),
        "rule_version": pa.array([VERSION] * len(verdicts), pa.int32()),
    }
    for name, column in scores.items():
        table = table.append_column(name, column)
    return table, np.array(verdicts, np.str_)


def _nothing_accepted(label: str, verdicts: Counter[str]) -> str:
    if not verdicts:
        return f"{label}: there are no synthetic documents; raise the arms' synthetic_share or training.tokens"
    counts = ", ".join(f"{reason} {count:,}" for reason, count in verdicts.most_common() if count)
    remedy = REMEDIES[verdicts.most_common(1)[0][0]]
    rejected = f"{label}: all {sum(verdicts.values()):,} synthetic documents were rejected ({counts})"
    return f"{rejected}; {remedy}, or train the synthesizer longer"
