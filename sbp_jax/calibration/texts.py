"""What documents of several settings are worth: the scores and verdicts of the filters, and how varied they are.

The rules are those of the stage `filter`, with the same columns. A document is a copy of an earlier one of its own
setting; the settings know nothing of one another.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.calibration.writing import new_tokens
from sbp_jax.config import Filters
from sbp_jax.data import earlier_copies
from sbp_jax.data.references import references
from sbp_jax.data.screened import Ragged, mapped, save
from sbp_jax.data.synthetic import FINISHES
from sbp_jax.data.synthetic_scores import score
from sbp_jax.data.verdicts import ACCEPTED, by_itself, trimmed, with_copies
from sbp_jax.generation.requests import Completion, Sampling
from sbp_jax.generation.run_requests import RunRequests
from sbp_jax.scoring.ratio import Estimate, ratio
from sbp_jax.text import contamination
from sbp_jax.text.shingles import rolled, words

DISTINCT = (2, 4)  # words of the n-grams whose variety is told
MEANS = ("words", "repetition", "seed_common", "seed_overlap", "copied", "held_out")


@dataclass(frozen=True)
class Compared:
    """What documents are compared with, and by which rules.

    Attributes:
      documents, splits, screened: the artifacts of the real documents.
      version: of the rules of the stage `filter`.
    """

    documents: Artifact
    splits: Artifact
    screened: Artifact
    evaluations: contamination.Evaluations
    filters: Filters
    version: int


def scored(
    scratch: Output, source: RunRequests, written: Sequence[Sequence[Completion]], compared: Compared
) -> list[pa.Table]:
    """The documents of each setting with their scores and verdicts; the corpus is read once.

    Columns beside those of the filters: `number` of the request, `text` as it would be kept, `accepted_tokens` (0 where
    it is rejected, otherwise tokens of the kept text with its end), and `copy`: whether it is a copy of an earlier one,
    rejected ones among them.

    Args:
      scratch: a folder for what is made on the way.
      written: the completions of each setting.
    """
    tables = [_documents(source, completions) for completions in written]
    read = np.unique([ordinal for table in tables for some in table["conditioning"].to_pylist() for ordinal in some])
    real = compared.documents, compared.splits, compared.screened
    known = references(scratch, *real, read.astype(np.int64), compared.filters.index)
    items = contamination.read(compared.evaluations)
    results = []
    for place, table in enumerate(tables):
        finishes, seeds = table["finish"].to_pylist(), table["seed"].to_pylist()
        kept, _ = trimmed(table["text"].to_pylist(), finishes, compared.filters)
        found = score(kept, seeds, table["conditioning"].to_pylist(), known, items)
        verdicts = by_itself(found.rows, finishes, kept, compared.filters)
        owners = table["seed"].fill_null(-1).to_numpy()
        folder = scratch.path / f"setting-{place}"
        least = compared.filters.near_sibling, compared.filters.near_duplicate
        both = []
        for name, stays in (("kept", verdicts == ACCEPTED), ("every", np.ones(len(kept), bool))):
            part = Output(folder / name, scratch.recipe, scratch.label)
            both.append(_earlier(part, found.shingles, found.counts, stays, owners, least))
        rows = found.rows.append_column("verdict", pa.array(verdicts.tolist(), pa.string()))
        rows = with_copies(rows, both[0], owners, slice(0, len(kept)), compared.version)
        verdict = np.array(rows["verdict"].to_pylist())
        sizes = [len(tokens) + 1 for tokens in source.tokenizer.encode_batch(kept)]
        table = table.set_column(table.schema.get_field_index("text"), "text", pa.array(kept, pa.string()))
        for name in rows.schema.names:
            table = table.append_column(name, rows[name])
        table = table.append_column("accepted_tokens", pa.array(np.where(verdict == ACCEPTED, sizes, 0)))
        results.append(table.append_column("copy", pa.array(both[1].of_R >= 0)))
    return results


def summary(table: pa.Table, sampling: Sampling) -> dict[str, Any]:
    """The documents of one setting in numbers."""
    documents, verdicts = table.num_rows, Counter(table["verdict"].to_pylist())
    finishes = Counter(table["finish"].to_pylist())
    columns = {name: _numbers(table, name) for name in ("new_tokens", *MEANS)}
    told: dict[str, Any] = {
        **{"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k},
        **{"documents": documents, "new_tokens": int(columns["new_tokens"].sum())},
        "mean_new_tokens": float(columns["new_tokens"].mean()),
        "finish": {name: finishes[name] / documents for name in FINISHES},
        **{name: float(columns[name].mean()) if len(columns[name]) else None for name in MEANS},
        "longest_seed_common": int(columns["seed_common"].max()) if len(columns["seed_common"]) else None,
        **{f"distinct_{length}": distinct(table["text"].to_pylist(), length) for length in DISTINCT},
        "copies": float(table["copy"].to_numpy().mean()),
        "accepted": verdicts.pop(ACCEPTED, 0) / documents,
        "rejected": {name: count / documents for name, count in verdicts.most_common()},
    }
    return told


def accepted_tokens(table: pa.Table) -> Estimate:
    """Tokens that a document adds to what the arms train on, rejected ones counted; by seed."""
    seeds = table["seed"].fill_null(-1).to_numpy()
    owners = np.where(seeds < 0, -1 - np.arange(len(seeds)), seeds)
    return ratio(table["accepted_tokens"].to_numpy(), np.ones(len(seeds)), owners)


def distinct(texts: Sequence[str], length: int) -> float | None:
    """Share of the n-grams of some texts that are different ones; None where there are none."""
    found = words(texts)
    owners_W = np.repeat(np.arange(len(texts)), np.diff(found.offsets))
    hashes = rolled(found.hashes_W, length)
    inside = owners_W[: len(hashes)] == owners_W[length - 1 :][: len(hashes)]
    return len(np.unique(hashes[inside])) / int(np.count_nonzero(inside)) if np.any(inside) else None


def _documents(source: RunRequests, completions: Sequence[Completion]) -> pa.Table:
    rows = []
    for completion in completions:
        lineage = source.lineage(completion.request)
        own = {"number": completion.request.number, "finish": completion.finish, "logprob": completion.logprob}
        own |= {name: lineage[name] for name in ("seed", "sample", "conditioning")}
        rows.append(own | {"text": source.tokenizer.decode(completion.tokens), "new_tokens": new_tokens(completion)})
    table = pa.Table.from_pylist(rows)
    kinds = {"seed": pa.int64(), "conditioning": pa.list_(pa.int64())}  # without seeds they would have none
    for name, kind in kinds.items():
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    return table


def _earlier(
    part: Output, shingles: np.ndarray, counts: np.ndarray, stays: np.ndarray, seeds: np.ndarray, least: tuple
) -> earlier_copies.Earlier:
    """Which documents of a setting are copies of earlier ones that stay."""
    rows = slice(0, len(counts))
    save(part, "shingles.npy", shingles)
    save(part, "starts.npy", np.concatenate(([0], np.cumsum(counts))))
    earlier_copies.save_sketches(part, "sketches.npy", 0, shingles, counts, stays)
    stored = Ragged([part.path / "shingles.npy"], [part.path / "starts.npy"])
    (copies,) = earlier_copies.save_copies(part, ["sketches.npy"], stored, np.array([0, rows.stop]))
    return earlier_copies.judge(mapped(part.path / copies), rows, seeds, stays.copy(), least)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column without its nulls."""
    return table[name].drop_null().to_numpy().astype(np.float64)
