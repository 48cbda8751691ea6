"""Splits: equal texts together, near-copies never across, fractions as asked for."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, Splits
from sbp_jax.errors import SbpError
from sbp_jax.stages import ingest, split
from sbp_jax.text.shingles import containment, shingles

HALVES = Splits(validation=0.2, test=0.2, capped=0.3, oracle=0.8)


def run(
    folder,
    texts: list[str],
    splits: Splits,
    per_shard: int = 100,
    name: str = "splits",
    sources: list[str] | None = None,
    named: list[str | None] | None = None,
) -> tuple[list[str], Artifact]:
    documents = Output(epath.Path(folder / f"documents_{name}"), Recipe("ingest", 1, {}, {}), "ingest")
    for shard, first in enumerate(range(0, len(texts), per_shard)):
        part = texts[first : first + per_shard]
        columns = {"ordinal": list(range(first, first + len(part))), "text": part}
        if sources is not None:
            columns["source"] = sources[first : first + len(part)]
        if named is not None:
            columns["split"] = named[first : first + len(part)]
        documents.shard(shard, ".parquet", lambda writing, columns=columns: parquet.write(writing, pa.table(columns)))
    output = Output(epath.Path(folder / name), Recipe("split", 1, {}, {}), "split")
    artifact = split.run(output, documents=documents.finish(), splits=splits, execution=Execution())
    table = parquet.read(artifact)
    assert table["ordinal"].to_pylist() == list(range(len(texts)))
    return table["split"].to_pylist(), artifact


def words(seed: int, count: int = 60) -> list[str]:
    return [f"w{i}" for i in np.random.default_rng(seed).integers(0, 10**6, count)]


def test_fractions_are_as_asked_for_also_in_a_sampled_corpus(tmp_path):
    """Sampling and splitting by one hash would make the validation set of a 10% sample ten times too large."""
    texts = [" ".join(words(i, 3)) for i in range(40_000)]
    sampled = [text for text in texts if ingest._sampled(text, 0.25)]
    assert 9_500 < len(sampled) < 10_500
    found, artifact = run(tmp_path, sampled, HALVES, per_shard=4000)
    train = 0.6
    fractions = {"validation": 0.2, "test": 0.2, "capped": train * 0.3, "oracle": train * 0.5, "unused": train * 0.2}
    for name, fraction in fractions.items():
        assert abs(found.count(name) / len(sampled) - fraction) < 0.02
        assert artifact.stats[f"documents_{name}"] == found.count(name)


def test_equal_texts_share_a_split_wherever_they_stand_and_seeds_differ(tmp_path):
    texts = [" ".join(words(i)) for i in range(300)] + [" … "] * 3
    found, _ = run(tmp_path, texts, HALVES, name="a")
    turned, _ = run(tmp_path, texts[::-1], HALVES, per_shard=37, name="b")
    other, _ = run(tmp_path, texts, Splits(0.2, 0.2, 0.8, 0.3, seed=1), name="c")
    assert found == turned[::-1]
    assert found != other


def test_a_cap_by_source_keeps_the_documents_of_a_source_together(tmp_path):
    """Of pairs within sources a cap by text would keep the square of its fraction."""
    texts = [" ".join(words(i)) for i in range(4000)]
    sources = [f"source {i % 400}" for i in range(4000)]
    found, _ = run(tmp_path, texts, replace(HALVES, by="source"), per_shard=1500, sources=sources)
    by_source: dict[str, set[str]] = {}
    for source, split_ in zip(sources, found, strict=True):
        by_source.setdefault(source, set()).add(split_)
    assert all(len(splits & {"capped", "oracle", "unused"}) == 1 for splits in by_source.values())
    capped = [source for source, splits in by_source.items() if "capped" in splits]
    assert 0.22 < len(capped) / 400 < 0.38
    assert any("test" in by_source[source] for source in capped)  # held out by text, as without sources


def test_documents_that_name_their_split_keep_it_but_for_near_copies(tmp_path):
    """A test document of the user's must not be trained on, nor a copy of a training document score the arms."""
    texts = [" ".join(words(i)) for i in range(50)]
    named = ["capped", "oracle", "unused", "validation", "test"] * 9 + [None] * 5
    texts[4] = texts[0] + " and more"  # a test document that the capped set holds
    found, artifact = run(tmp_path, texts, HALVES, named=named)
    expected = ["unused" if place == 4 else name for place, name in enumerate(named[:45])]
    assert found[:45] == expected and artifact.stats["moved"] == 1
    assert all(name in {"capped", "oracle", "unused", "validation", "test"} for name in found[45:])


def sides(found: list[str]) -> np.ndarray:
    """0 training, 1 validation, 2 test, 3 unused."""
    return np.array([{"capped": 0, "oracle": 0, "validation": 1, "test": 2, "unused": 3}[name] for name in found])


def families(count: int) -> list[str]:
    """Chains of texts, each sharing most words with the one before it and few with the one before that."""
    texts = []
    for family in range(count):
        long = words(family, 150)
        texts += [" ".join(long[start : start + 60]) for start in range(0, 90, 20)]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def test_no_near_copy_is_left_across_the_sides(tmp_path):
    """One pass is not enough: a document that joins the training side brings its own copies into question."""
    texts = families(80)
    grams = [shingles(text) for text in texts]
    copies = [
        (i, j) for i in range(len(texts)) for j in range(len(texts)) if i < j and containment(grams[i], grams[j]) >= 0.5
    ]
    found, artifact = run(tmp_path, texts, HALVES, per_shard=64)
    unmoved, _ = run(tmp_path, texts, Splits(0.2, 0.2, 0.8, 0.3, near_duplicate=1.1), name="unmoved")

    def crossing(found: list[str]) -> int:
        side = sides(found)
        return sum(side[i] != side[j] and 3 not in (side[i], side[j]) for i, j in copies)

    assert crossing(unmoved) > 50 and crossing(found) == 0
    before, after = sides(unmoved), sides(found)
    assert np.all((before == after) | np.isin(before, (1, 2)))
    assert artifact.stats["moved"] == np.sum(np.isin(before, (1, 2)) & np.isin(after, (0, 3))) > 10
    assert artifact.stats["moved_to_test"] == np.sum((before == 1) & (after == 2)) > 0


def test_only_what_has_to_move_moves(tmp_path):
    """Moving whole families, or copies of unused documents, would empty the held-out sets of a repetitive corpus."""
    texts = families(80)
    grams = [shingles(text) for text in texts]
    found, _ = run(tmp_path, texts, HALVES)
    unmoved, _ = run(tmp_path, texts, Splits(0.2, 0.2, 0.8, 0.3, near_duplicate=1.1), name="unmoved")
    side, before = sides(found), sides(unmoved)
    training, test = np.flatnonzero(side == 0), np.flatnonzero(side == 2)

    def has_copy(i: int, among: np.ndarray) -> bool:
        return any(containment(grams[i], grams[j]) >= 0.5 for j in among if j != i)

    for i in np.flatnonzero(before != side):
        assert has_copy(i, test if side[i] == 2 else training)


@pytest.mark.parametrize("fraction", ["validation", "test", "capped"])
def test_an_empty_set_is_an_error_that_says_which_fraction_to_raise(tmp_path, fraction):
    settings = {"validation": 0.3, "test": 0.3, "capped": 0.5} | {fraction: 0.0}
    with pytest.raises(SbpError, match=f"raise splits.{fraction}"):
        run(tmp_path, [" ".join(words(i)) for i in range(100)], Splits(**settings))


@pytest.mark.parametrize(
    "splits", [Splits(validation=0.5, test=0.5), Splits(capped=0.5, oracle=0.4), Splits(near_duplicate=0)]
)
def test_fractions_that_exclude_each_other_are_errors(tmp_path, splits):
    with pytest.raises(SbpError):
        run(tmp_path, ["a b", "c d"], splits)
