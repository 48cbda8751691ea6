"""The measured documents, one row each, with everything that is told of a document by itself.

Shapes: T measured documents, of which the first S are of the sets that are compared with the corpus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact
from sbp_jax.progress import progress
from sbp_jax.quality import pairs as paired
from sbp_jax.quality import relevance, samples
from sbp_jax.quality.corpus import BATCH, Against, Measured, compare, hashed
from sbp_jax.quality.duplicates import Degrees
from sbp_jax.quality.samples import CAPPED, GENERATED, HELD_OUT, KEPT, KEPT_OUT, RANDOM, REAL, REJECTED, SETS, TRUE
from sbp_jax.text import contamination
from sbp_jax.text.language import language
from sbp_jax.text.repetition import repetition
from sbp_jax.text.shingles import shingle_sets, words
from sbp_jax.text.tokenizer import TextTokenizer

TAIL = "rejected"  # prefix of the shards of rejected documents


@dataclass(frozen=True)
class Sources:
    """Where the documents come from; `pairs` are of related documents, the reference."""

    documents: Artifact
    splits: Artifact
    pairs: Artifact
    synthesized: Artifact
    synthetic: Artifact


def collect(sources: Sources, wanted: int) -> pa.Table:
    """At most so many documents of each kind, those of the sets first."""
    documents, splits = sources.documents, sources.splits
    real = samples.real(documents, splits, CAPPED, REAL, wanted)
    true = samples.true_pairs(documents, sources.pairs, wanted)
    tables = [
        real,
        samples.real(documents, splits, HELD_OUT, KEPT_OUT, wanted),
        samples.synthetic(sources.synthesized, GENERATED, wanted),
        samples.synthetic(sources.synthetic, KEPT, wanted),
        samples.synthetic(sources.synthetic, REJECTED, wanted, TAIL),
        true,
        samples.random_pairs(documents, true["seed"].to_numpy(), real["ordinal"].to_numpy()),
    ]
    return pa.concat_tables(tables).combine_chunks()


def measure(
    table: pa.Table,
    sources: Sources,
    tokenizer: TextTokenizer,
    items: contamination.Items,
    vectors: relevance.Source,
    label: str,
) -> tuple[pa.Table, dict[str, int]]:
    """The documents with their measures, and how many documents there are in each set."""
    groups = table["group"].to_numpy(zero_copy_only=False).astype(str)
    texts = table["text"].to_pylist()
    in_sets = int(np.count_nonzero(np.isin(groups, SETS)))
    found = hashed(texts)
    against, degrees, sizes = _against_all(table.slice(0, in_sets), hashed(texts[:in_sets]), sources, label)
    columns = _by_itself(texts, found, tokenizer, items)
    columns["near_duplicates"] = _padded(degrees, len(texts))
    columns |= {name: _padded(values, len(texts)) for name, values in _columns(against).items()}
    columns |= _of_pairs(table, texts, found, sources.documents, vectors, label)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table, sizes


def _by_itself(
    texts: Sequence[str], found: Measured, tokenizer: TextTokenizer, items: contamination.Items
) -> dict[str, pa.Array]:
    held: list[contamination.Text | None] = []
    for own in found.words:
        hits = items.search(own)
        held += [hits.get(number) for number in range(len(own.offsets) - 1)]
    none = None if items.items == 0 else ""  # null where there was nothing to look for
    return {
        "words": pa.array(_joined([np.diff(own.offsets) for own in found.words], np.int64)),
        "tokens": pa.array(_tokens(texts, tokenizer), pa.int64()),
        "repetition": pa.array(_joined([repetition(own) for own in found.words], np.float32)),
        "language": pa.array(list(map(language, texts)), pa.string()),
        "contaminated_by": pa.array([item.file if item else none for item in held], pa.string()),
        "contaminated_item": pa.array(
            [f"line {item.line}: {item.text[: contamination.SHOWN]}" if item else none for item in held], pa.string()
        ),
    }


def _tokens(texts: Sequence[str], tokenizer: TextTokenizer) -> list[int]:
    """Tokens of each text; some texts at a time, as the tokenizer holds many bytes for each token."""
    starts = range(0, len(texts), BATCH)
    return [len(ids) for start in starts for ids in tokenizer.encode_batch(list(texts[start : start + BATCH]))]


def _against_all(
    table: pa.Table, found: Measured, sources: Sources, label: str
) -> tuple[Against, np.ndarray, dict[str, int]]:
    """The documents of the sets against the corpus, and the near-duplicates of each within its set."""
    groups = table["group"].to_numpy(zero_copy_only=False).astype(str)
    rows = table["row"].to_numpy()
    counters: dict[str, Degrees] = {}
    for name in SETS:
        own = np.flatnonzero(groups == name)
        shingles = _joined([found.of(place) for place in own.tolist()], np.uint64)
        counters[name] = Degrees(rows[own], shingles, found.counts[own])
    is_capped, is_held_out = groups == REAL, groups == KEPT_OUT
    streams = {CAPPED: counters[REAL], HELD_OUT: counters[KEPT_OUT]}
    against = compare(
        found, rows, is_capped, is_held_out, sources.documents, sources.splits, streams, f"{label}: real documents"
    )
    for name, artifact, prefix in (
        (GENERATED, sources.synthesized, "part"),
        (KEPT, sources.synthetic, "part"),
        (REJECTED, sources.synthetic, TAIL),
    ):
        with progress(f"{label}: {name}", None, "documents") as counter:
            for first, some in samples.texts(artifact, BATCH, prefix):
                counters[name].add(np.arange(first, first + len(some)), *shingle_sets(words(some)))
                counter.advance(len(some))
    degrees = _joined([counters[name].degrees() for name in SETS], np.int64)
    return against, degrees, {name: counter.size for name, counter in counters.items()}


def _columns(against: Against) -> dict[str, np.ndarray]:
    found = {"copied": against.copied_T, "held_out": against.held_out_T, "nearest": against.nearest_T}
    found |= {"containment": against.containment_T, "run": against.run_T}
    for length, (every_T, new_T) in against.grams.items():
        found |= {f"ngrams_{length}": every_T, f"novel_ngrams_{length}": new_T}
    return found


def _of_pairs(
    table: pa.Table,
    texts: Sequence[str],
    found: Measured,
    documents: Artifact,
    vectors: relevance.Source,
    label: str,
) -> dict[str, pa.Array]:
    """Columns of documents that are paired with a seed, null for the others."""
    seeds, read = table["seed"].to_pylist(), [some or [] for some in table["read"].to_pylist()]
    has_seed = np.array([seed is not None for seed in seeds], bool)
    real_texts = _real_texts(documents, [seed for seed in seeds if seed is not None], read)
    real = paired.hash_real(real_texts)
    copied = paired.copying(found, read, real)
    capped = [place for place, group in enumerate(table["group"].to_pylist()) if group == REAL]
    own_words = [own.hashes_W[own.text(place)] for own in found.words for place in range(len(own.offsets) - 1)]
    vocabulary = relevance.Vocabulary([own_words[place] for place in capped])
    by_words = [
        0.0 if seed is None else vocabulary.similarity(real[seed].words_W, own_words[place])
        for place, seed in enumerate(seeds)
    ]
    places = np.flatnonzero(has_seed)
    similar = np.zeros(len(texts))
    known = vectors.embedder is not None and len(places) > 0
    if known:
        similar[places] = _similarities(table.take(pa.array(places)), real_texts, vectors, label)
    languages = {seed: language(real_texts[seed]) for seed in set(seeds) if seed is not None}
    missing = ~has_seed
    return {
        "seed_copy": pa.array(copied.copy_T, mask=missing),
        "seed_overlap": pa.array(copied.overlap_T, mask=missing),
        "seed_run": pa.array(copied.run_T, mask=missing),
        "seed_language": pa.array([None if seed is None else languages[seed] for seed in seeds], pa.string()),
        "similarity": pa.array(similar, mask=missing | (not known)),
        "similarity_words": pa.array(np.array(by_words, np.float64), mask=missing),
    }


def _similarities(table: pa.Table, real_texts: Mapping[int, str], vectors: relevance.Source, label: str) -> np.ndarray:
    """Cosines of the documents with their seeds; real ones have vectors already."""
    groups, seeds = table["group"].to_pylist(), table["seed"].to_pylist()
    is_real = np.isin(groups, (TRUE, RANDOM))
    ordinals, texts = table["ordinal"].to_pylist(), table["text"].to_pylist()
    needed = {seed: real_texts[seed] for seed in seeds}
    needed |= {ordinals[place]: texts[place] for place in np.flatnonzero(is_real)}
    with progress(f"{label}: embeddings", int(np.count_nonzero(~is_real)), "documents") as counter:
        found = relevance.Vectors(vectors, needed, counter.advance)
        own_TD = found.of_real([ordinals[place] if real else seeds[0] for place, real in enumerate(is_real)])
        others = np.flatnonzero(~is_real)
        own_TD[others] = found.of_texts([texts[place] for place in others])
    return relevance.cosines(found.of_real(seeds), own_TD)


def _real_texts(documents: Artifact, seeds: Sequence[int], read: Sequence[Sequence[int]]) -> dict[int, str]:
    """Texts of all documents that others were paired with or written from, by ordinal."""
    ordinals = np.unique(np.array([*seeds, *(ordinal for some in read for ordinal in some)], np.int64))
    found = samples.rows_at(documents, ordinals, ["text"])["text"].to_pylist() if len(ordinals) else []
    return dict(zip(ordinals.tolist(), found, strict=True))


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.empty(0, kind), *parts])


def _padded(values: np.ndarray, length: int) -> pa.Array:
    """Nulls for the documents that are of no set."""
    return pa.concat_arrays([pa.array(values), pa.nulls(length - len(values), pa.array(values).type)])
