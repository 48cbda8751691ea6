"""Stage `filter`: which synthetic documents are kept, and why each of the others is not.

The rules, in this order; the first that a document breaks is its verdict:

1. loop: the text went round in a circle (finish = loop).
2. unfinished: cut by length, and `filters.unfinished` is drop, or is trim and no sentence ends in it. What a trim cuts
   off is in the row; everything below is measured on what it leaves.
3. too_short: fewer words than `filters.min_words`, or none at all.
4. too_long: more words than `filters.max_words`.
5. repetition: more than `filters.max_repetition` of its 4-word n-grams repeat an earlier one of the document.
6. seed_run: more than `filters.max_seed_run` words in a row are also in a document that was read for it.
7. seed_overlap: more than `filters.max_seed_overlap` of its shingles are in the documents that were read for it.
8. copied: more than `filters.max_copied` of its shingles are in any capped documents.
9. held_out: more than `filters.max_held_out` of its shingles are in validation or test documents and in no capped one.
10. contaminated: it holds an item of an evaluation set (`pairs.decontaminate`).
11. language: `filters.same_language`, and it is in another language than its seed; both are known.
12. sibling: an earlier document with the same seed has `filters.near_sibling` of the smaller one's shingles, or more.
13. duplicate: any other earlier document has `filters.near_duplicate` of them.

Shingles are runs of 13 words. The last two rules compare only with earlier documents that no rule rejects. A document
for which nothing was read has no seed, and rules 6, 7, 11 and 12 do not apply to it.
"""

import json
from collections import Counter
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Filters
from sbp_jax.data import earlier_copies, shards
from sbp_jax.data.references import References, opened, references
from sbp_jax.data.screened import Ragged, mapped, save
from sbp_jax.data.synthetic_scores import score
from sbp_jax.data.verdicts import ACCEPTED, by_itself, trimmed, with_copies
from sbp_jax.errors import SbpError
from sbp_jax.progress import progress
from sbp_jax.text import contamination

VERSION = 3
REMEDIES = {
    "loop": "raise synthesis.temperature or synthesis.top_p",
    "unfinished": "raise synthesis.max_new_tokens or set filters.unfinished",
    "too_short": "lower filters.min_words",
    "too_long": "raise filters.max_words",
    "repetition": "raise filters.max_repetition",
    "seed_run": "raise filters.max_seed_run",
    "seed_overlap": "raise filters.max_seed_overlap",
    "copied": "raise filters.max_copied",
    "held_out": "raise filters.max_held_out",
    "contaminated": "see contaminated_item in the rejected rows, and pairs.decontaminate",
    "language": "set filters.same_language to False",
    "sibling": "raise synthesis.temperature or synthesis.top_p, or filters.near_sibling",
    "duplicate": "raise synthesis.temperature or synthesis.top_p, or filters.near_duplicate",
}
INDEX = "index.json"
ARRAYS = "shingles", "starts"  # of each shard: see `Ragged`


def run(
    output: Output,
    *,
    synthesized: Artifact,
    documents: Artifact,
    splits: Artifact,
    screened: Artifact,
    evaluations: contamination.Evaluations,
    filters: Filters,
    execution: Execution,
) -> Artifact:
    """Writes accepted documents to part-*, with new dense ordinals, and the others to rejected-*, with their verdict.

    Both keep the lineage and all scores. Memory holds a few bytes for each document, real or synthetic, one shard, and
    the indexes of real shingles, which are mapped. What is made on the way lies in a folder `scratch`, in which a
    killed run finds what it had done, and which is deleted at the end.

    Raises:
      SbpError: nothing is accepted, or a file of an evaluation set cannot be read.
    """
    count = len(synthesized.shards(".parquet"))
    names = [f"{kind}-{index:05d}.parquet" for kind in ("part", "rejected") for index in range(count)]
    scratch = Output(output.path / "scratch", output.recipe, output.label)
    if synthesized.rows and not all(map(output.has, [INDEX, *names])):
        # A run that goes on elsewhere keeps to the kind of index that was begun with.
        kind = _index(output)["index"] if output.has(INDEX) else filters.index
        compared = references(scratch, documents, splits, screened, _read(scratch, synthesized), kind)
        _write_index(output, compared)
        _score_all(scratch, synthesized, evaluations, filters, execution)
        _compared.cache_clear()
        _items.cache_clear()
        _judge_all(output, scratch, synthesized, filters)
    verdicts = _verdicts(output, names)
    scratch.path.rmtree()
    if not verdicts[ACCEPTED]:
        raise SbpError(_nothing_accepted(output.label, verdicts))
    return output.finish({"documents": synthesized.rows, "rule_version": VERSION} | _index(output))


def _read(scratch: Output, synthesized: Artifact) -> np.ndarray:
    """Ordinals of the real documents that were read for synthetic ones, sorted."""
    if not scratch.has("read.npy"):
        found = [np.empty(0, np.int64)]
        for table in parquet.tables(synthesized, ["conditioning"]):
            found.append(pc.list_flatten(table["conditioning"].combine_chunks()).unique().to_numpy())
        save(scratch, "read.npy", np.unique(np.concatenate(found)))
    return mapped(scratch.path / "read.npy")


def _score_all(
    scratch: Output,
    synthesized: Artifact,
    evaluations: contamination.Evaluations,
    filters: Filters,
    execution: Execution,
) -> None:
    """Writes for each shard the scores with the verdict by rules 1 to 11, the shingles, and their sketches."""
    rows = parquet.shard_rows(synthesized)
    names = [_scored(number) for number in range(len(rows))]
    work = partial(_score, folder=scratch.path, synthesized=synthesized, evaluations=evaluations, filters=filters)
    shards.make(scratch, names, work, execution, rows, divided=False)


def _scored(number: int) -> list[str]:
    return [f"{kind}-{number:05d}.npy" for kind in (*ARRAYS, "sketches")] + [f"scored-{number:05d}.parquet"]


_compared = lru_cache(maxsize=1)(opened)  # once in each process that scores, as the next
_items = lru_cache(maxsize=1)(contamination.read)


def _score(
    output: Output,
    number: int,
    folder: epath.Path,
    synthesized: Artifact,
    evaluations: contamination.Evaluations,
    filters: Filters,
) -> None:
    """Scores one shard."""
    table = parquet.shard(synthesized, number, ["text", "finish", "conditioning", "seed"])
    kept, removed = trimmed(table["text"].to_pylist(), table["finish"].to_pylist(), filters)
    read = table["seed"].to_pylist(), table["conditioning"].to_pylist()
    scored = score(kept, *read, _compared(folder), _items(evaluations))
    verdicts = by_itself(scored.rows, table["finish"].to_pylist(), kept, filters)
    shingles, starts, sketches, last = _scored(number)
    save(output, shingles, scored.shingles)
    save(output, starts, np.concatenate(([0], np.cumsum(scored.counts))))
    first = sum(parquet.shard_rows(synthesized)[:number])
    earlier_copies.save_sketches(output, sketches, first, scored.shingles, scored.counts, verdicts == ACCEPTED)
    rows = pa.table({"trimmed": pa.array(removed, pa.string()), "seed": table["seed"]})
    for name in scored.rows.schema.names:
        rows = rows.append_column(name, scored.rows[name])
    with output.writing(last) as writing:
        parquet.write(writing, rows.append_column("verdict", pa.array(verdicts.tolist(), pa.string())))


def _judge_all(output: Output, scratch: Output, synthesized: Artifact, filters: Filters) -> None:
    """Finds copies of earlier documents and writes the shards that are missing."""
    paths = synthesized.shards(".parquet")
    scored = [scratch.path / f"scored-{index:05d}.parquet" for index in range(len(paths))]
    seeds, stays = _seeds_and_passing(scored)
    bounds = np.cumsum([0, *map(parquet.rows, paths)])
    stored = Ragged(*([scratch.path / f"{kind}-{index:05d}.npy" for index in range(len(paths))] for kind in ARRAYS))
    sketches = [f"sketches-{index:05d}.npy" for index in range(len(paths))]
    copies = earlier_copies.save_copies(scratch, sketches, stored, bounds)
    first = 0
    with progress(output.label, synthesized.rows, "documents") as counter:
        for index, path in enumerate(paths):
            rows = slice(int(bounds[index]), int(bounds[index + 1]))
            found = mapped(scratch.path / copies[index])
            earlier = earlier_copies.judge(found, rows, seeds, stays, (filters.near_sibling, filters.near_duplicate))
            if all(output.has(f"{kind}-{index:05d}.parquet") for kind in ("part", "rejected")):
                counter.skip(rows.stop - rows.start)
            else:
                scores = parquet.table(scored[index])
                copied = with_copies(scores, earlier, seeds, rows, VERSION)
                _write(output, index, _joined(parquet.table(path), copied), first)
                counter.advance(rows.stop - rows.start)
            first += int(np.count_nonzero(stays[rows]))


def _seeds_and_passing(scored: list[epath.Path]) -> tuple[np.ndarray, np.ndarray]:
    """The seed of each document, -1 where there is none, and whether it breaks none of rules 1 to 11."""
    seeds, passing = [], []
    for path in scored:
        table = parquet.table(path, ["seed", "verdict"])
        seeds.append(table["seed"].fill_null(-1).to_numpy())
        passing.append(pc.equal(table["verdict"], ACCEPTED).to_numpy())
    return np.concatenate(seeds), np.concatenate(passing)


def _joined(table: pa.Table, scores: pa.Table) -> pa.Table:
    """The documents as they are kept, with their scores."""
    both = zip(table["text"].to_pylist(), scores["trimmed"].to_pylist(), strict=True)
    kept = [text[: len(text) - len(removed)] for text, removed in both]
    table = table.set_column(table.schema.get_field_index("text"), "text", pa.array(kept, pa.string()))
    for name in scores.schema.names:
        if name not in table.schema.names:
            table = table.append_column(name, scores[name])
    return table


def _write(output: Output, index: int, table: pa.Table, first: int) -> None:
    """Writes the accepted documents of a shard, with ordinals from `first` on, and the rejected ones."""
    is_accepted = pc.equal(table["verdict"], ACCEPTED)
    accepted, rejected = table.filter(is_accepted), table.filter(pc.invert(is_accepted))
    ordinals = pa.array(range(first, first + accepted.num_rows), pa.int64())
    accepted = accepted.set_column(table.schema.get_field_index("ordinal"), "ordinal", ordinals)

    def write_accepted(writing: Writing) -> None:
        parquet.write(writing, accepted)
        size = pc.sum(pc.binary_length(accepted["text"])).as_py() or 0
        trimmed = int(np.count_nonzero(pc.not_equal(accepted["trimmed"], "").to_numpy()))
        writing.stats = {"accepted": accepted.num_rows, "bytes": size, "trimmed": trimmed}

    def write_rejected(writing: Writing) -> None:
        parquet.write(writing, rejected)
        counts = Counter(rejected["verdict"].to_pylist())
        writing.stats = {f"rejected_{reason}": counts[reason] for reason in REMEDIES}

    output.shard(index, ".parquet", write_accepted)
    output.shard(index, ".parquet", write_rejected, prefix="rejected")


def _write_index(output: Output, compared: References) -> None:
    """Writes what the real documents were looked up in; the statistics read it back."""
    if not output.has(INDEX):
        with output.writing(INDEX) as writing:
            capped, held_out = compared.capped, compared.held_out
            kind = "bloom" if capped.hashes is None else "exact"
            found = {"index": kind, "index_shingles": capped.shingles, "index_shingles_held_out": held_out.shingles}
            wrong = {"index_error": capped.false_positives, "index_error_held_out": held_out.false_positives}
            writing.path.write_text(json.dumps(found | wrong, indent=1))


def _index(output: Output) -> dict[str, Any]:
    return json.loads((output.path / INDEX).read_text())


def _verdicts(output: Output, names: list[str]) -> Counter[str]:
    """Counts over all shards, read back from the files, since some may be an earlier run's."""
    counts: Counter[str] = Counter()
    for name in filter(output.has, names):
        for entry in parquet.table(output.path / name, ["verdict"])["verdict"].value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


def _nothing_accepted(label: str, verdicts: Counter[str]) -> str:
    if not verdicts:
        return f"{label}: there are no synthetic documents; raise the arms' synthetic_share or training.tokens"
    counts = ", ".join(f"{reason} {count:,}" for reason, count in verdicts.most_common() if count)
    remedy = REMEDIES[verdicts.most_common(1)[0][0]]
    rejected = f"{label}: all {sum(verdicts.values()):,} synthetic documents were rejected ({counts})"
    return f"{rejected}; {remedy}, or train the synthesizer longer"
