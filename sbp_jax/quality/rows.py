"""The measures of each kind of documents from those of its documents, with 95% intervals.

Shares of documents have Wilson's interval. Means, and n-grams over n-grams, have a bootstrap interval in which
documents of one seed are drawn together. What a document has in the table of documents is all that is needed, but for
variety, which is a matter of all texts together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from sbp_jax.quality import relevance, samples
from sbp_jax.quality.corpus import NOVEL
from sbp_jax.quality.duplicates import NEAR, probabilities
from sbp_jax.quality.measures import HEAVY, LONGEST_N, MEASURES
from sbp_jax.quality.samples import PAIRED, SETS
from sbp_jax.quality.variety import Size, Variety, collapsed, least, size, variety
from sbp_jax.scoring.ratio import Estimate, ratio
from sbp_jax.scoring.share import share
from sbp_jax.text.language import UNDETERMINED

EQUAL = (samples.REAL, samples.GENERATED, samples.KEPT)  # sets that decide how much of each is compared
MEANS = ("copied", "held_out", "words", "tokens")  # of documents by themselves
SIGNED = ("similarity",)  # all others cannot lie below 0
Row = dict[str, Any]


def rows(documents: pa.Table, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The table and what stands beside it.

    Args:
      documents: the measured documents of all groups, with their measures.
      sizes: documents of each set, of which the measured ones are some.
    """
    groups = {name: _of(documents, name) for name in (*SETS, *PAIRED)}
    limits = _limits(groups)
    drawn = min(LONGEST_N, *(sizes[name] for name in EQUAL if sizes[name]), sizes[samples.REAL])
    texts = {name: groups[name]["text"].to_pylist() for name in SETS}
    each = {name: size(some) for name, some in texts.items()}
    compared = least([each[name] for name in EQUAL if texts[name]])
    found = {name: _variety(texts[name], each[name], compared) for name in SETS}
    made = []
    for name in SETS:
        if groups[name].num_rows == 0:
            continue
        pairs = groups[samples.TRUE if name == samples.REAL else name]
        row: Row = {"group": name, "documents": groups[name].num_rows, "documents_in_all": sizes[name]}
        row |= _of_texts(groups[name]) | _duplicates(groups[name], sizes[name], drawn)
        row |= (
            _of_pairs(pairs, limits) if name == samples.REAL or name in PAIRED else _of_pairs(pairs.slice(0, 0), limits)
        )
        made.append(row | _of_variety(found[name], compared.documents))
    if groups[samples.RANDOM].num_rows:
        row = dict.fromkeys(made[0]) if made else {}
        row |= {"group": samples.RANDOM, "documents": groups[samples.RANDOM].num_rows}
        made.append(row | _of_pairs(groups[samples.RANDOM], limits))
    openings = [
        {"group": name, "opening": text, "documents": count, "share": count / compared.documents}
        for name, of_set in found.items()
        if of_set is not None
        for text, count in of_set.openings
        if count > 1
    ]
    passages = [
        {"group": name, "passage": of_set.passage[0], "documents": of_set.passage[1]}
        for name, of_set in found.items()
        if of_set is not None and of_set.passage[1] > 1
    ]
    return {
        "rows": made,
        "drawn": drawn,
        "compared": vars(compared),
        "related_above": limits,
        "heavy_repetition": HEAVY,
        "near_duplicate": NEAR,
        "duplicates_at": {name: _curve(groups[name], sizes[name]) for name in SETS if groups[name].num_rows},
        "finishes": {name: _shares(groups[name], "finish") for name in SETS},
        "verdicts": {name: _shares(groups[name], "verdict") for name in SETS},
        "languages": {name: _shares(groups[name], "language") for name in SETS},
        "openings": openings,
        "passages": passages,
        "collapsed": collapsed(made, samples.REAL),
        "distances": relevance.histograms({name: _numbers(groups[name], "similarity") for name in PAIRED}),
    }


def _of(documents: pa.Table, group: str) -> pa.Table:
    return documents.filter(pa.array(documents["group"].to_numpy(zero_copy_only=False) == group))


def _limits(groups: Mapping[str, pa.Table]) -> dict[str, float | None]:
    names = ("similarity", "similarity_words")
    return {name: relevance.threshold(_numbers(groups[samples.RANDOM], name)) for name in names}


def _of_texts(table: pa.Table) -> Row:
    """The measures of documents by themselves and against the corpus."""
    owners = _owners(table)
    repeated, finish = _numbers(table, "repetition"), table["finish"].drop_null().to_pylist()
    row = _share("repetition_rate", repeated > np.float32(HEAVY))
    row |= _share("corpus_copying", _numbers(table, "containment") >= NEAR)
    row |= _share("contaminated", np.array(table["contaminated_by"].drop_null().to_pylist()) != "")
    row |= _share("finished", np.array(finish) == "end")
    for name, column in {"repetition": "repetition", "corpus_run": "run", **{n: n for n in MEANS}}.items():
        values = _numbers(table, column)
        row |= _mean(name, values, np.ones(len(values)), owners)
    for length in NOVEL:
        new, every = (_numbers(table, f"{name}_{length}") for name in ("novel_ngrams", "ngrams"))
        row |= _mean(f"novel_{length}", new, every, owners)
    return row


def _of_pairs(table: pa.Table, limits: Mapping[str, float | None]) -> Row:
    """The measures of documents that are paired with another; None where none is."""
    paired = table.filter(table["seed"].is_valid())
    owners = _owners(paired)
    row = {"pairs": paired.num_rows, **_share("pair_copying", _numbers(paired, "seed_copy") > 0)}
    for name in ("seed_overlap", "seed_run"):
        row |= _mean(name, _numbers(paired, name), np.ones(paired.num_rows), owners)
    for name, unrelated in (("similarity", "unrelated"), ("similarity_words", "unrelated_words")):
        values, limit = _numbers(paired, name), limits[name]
        row |= _mean(name, values, np.ones(len(values)), owners)
        row |= _share(unrelated, values <= (np.inf if limit is None else limit) if limit is not None else values[:0])
    seed, own = (np.array(paired[name].to_pylist(), object) for name in ("seed_language", "language"))
    known = (seed != UNDETERMINED) & (own != UNDETERMINED)
    return row | _share("other_language", (seed != own)[known])


def _duplicates(table: pa.Table, all_documents: int, drawn: int) -> Row:
    degrees, owners = _numbers(table, "near_duplicates").astype(np.int64), _owners(table)
    row: Row = {}
    for name, some in (("duplicates", drawn), ("duplicates_all", all_documents)):
        fits = some <= all_documents
        values = probabilities(degrees, all_documents, some) if fits else np.empty(0)
        row |= _mean(name, values, np.ones(len(values)), owners)
    return row


def _curve(table: pa.Table, all_documents: int) -> dict[str, float]:
    """Duplicate@N for powers of ten, and for all documents of the set."""
    degrees = _numbers(table, "near_duplicates").astype(np.int64)
    powers = [10**power for power in range(1, 10) if 10**power < all_documents]
    return {
        str(drawn): float(probabilities(degrees, all_documents, drawn).mean()) for drawn in (*powers, all_documents)
    }


def _variety(texts: Sequence[str], own: Size, compared: Size) -> Variety | None:
    """None where there is less of a set than is compared."""
    enough = all(vars(own)[name] >= value for name, value in vars(compared).items())
    return variety(texts, compared) if texts and enough else None


def _of_variety(found: Variety | None, documents: int) -> Row:
    names = [f"distinct_{length}" for length in (1, 2, 4)]
    if found is None:
        return dict.fromkeys([*names, "compression", *_named("opening"), *_named("passage")])
    row: Row = {f"distinct_{length}": value for length, value in found.distinct.items()}
    row["compression"] = found.compression
    for name, most in (("opening", found.openings[0][1] if found.openings else 0), ("passage", found.passage[1])):
        row |= _entry(name, share(most, documents))
    return row


def _shares(table: pa.Table, name: str) -> dict[str, float]:
    counts = Counter(table[name].drop_null().to_pylist())
    return {
        value: count / counts.total() for value, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    }


def _share(name: str, having: np.ndarray) -> Row:
    return _entry(name, share(int(np.count_nonzero(having)), len(having)) if len(having) else None)


def _mean(name: str, numerators: np.ndarray, denominators: np.ndarray, owners: np.ndarray) -> Row:
    """A ratio of sums; None where there is nothing to divide by.

    Documents that nothing can be divided by, such as those too short for an n-gram, say nothing and are left out:
    drawn alone they would be 0 over 0. Where no document has anything of what is counted, or nothing else, drawing from
    them shows no more. But a mean of values of 1 at most is no greater than the share of documents that have some,
    which has an interval then too.
    """
    counted = denominators > 0
    if not np.any(counted):
        return _entry(name, None)
    numerators, denominators, owners = numerators[counted], denominators[counted], owners[counted]
    found = ratio(numerators, denominators, owners)
    fraction = MEASURES[name].unit == "share"
    if fraction and found.value in (0.0, 1.0):
        documents = len(np.unique(owners))
        found = share(documents if found.value else 0, documents)
    if name not in SIGNED and found.low is not None and found.high is not None:
        found = replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0) if fraction else found.high)
    return _entry(name, found)


def _entry(name: str, found: Estimate | None) -> Row:
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return dict(zip(_named(name), values, strict=True))


def _named(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _owners(table: pa.Table) -> np.ndarray:
    """The seed of each document; those without one are each for themselves."""
    seeds = table["seed"].fill_null(-1).to_numpy()
    return np.where(seeds < 0, -1 - np.arange(len(seeds)), seeds)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column without its nulls, float64."""
    return table[name].drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
