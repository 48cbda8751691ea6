"""Screening: the evidence on each capped document, and shingles that readers map into memory."""

from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution
from sbp_jax.data.screened import Shingles, mapped
from sbp_jax.errors import SbpError
from sbp_jax.stages import screen
from sbp_jax.text.language import language
from sbp_jax.text.shingles import shingles

GERMAN = "Die Kernfusion ist eine Reaktion, bei der zwei Atomkerne zu einem neuen Kern verschmelzen."
ENGLISH = "Nuclear fusion is a reaction in which two atomic nuclei combine to form one new and heavier nucleus."
TEXTS = [ENGLISH, GERMAN, "…", "1 2 3", f"{ENGLISH} {GERMAN}", *(f"{ENGLISH} Number {i}." for i in range(12))]


def output(folder, name: str) -> Output:
    return Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)


def inputs(folder) -> dict[str, Artifact]:
    documents, splits = output(folder, "documents"), output(folder, "splits")
    for shard, start in enumerate(range(0, len(TEXTS), 5)):
        texts = TEXTS[start : start + 5]
        ordinals = range(start, start + len(texts))
        columns = {
            "ordinal": list(ordinals),
            "source": [f"site {ordinal % 2}" for ordinal in ordinals],
            "text": texts,
        }
        # All of the third shard, and every seventh document elsewhere, are no capped ones.
        split = ["oracle" if shard == 2 or ordinal % 7 == 6 else "capped" for ordinal in ordinals]
        for artifact, table in (
            (documents, pa.table(columns)),
            (splits, pa.table({"ordinal": list(ordinals), "split": split})),
        ):
            artifact.shard(shard, ".parquet", lambda writing, table=table: parquet.write(writing, table))
    return {"documents": documents.finish(), "splits": splits.finish()}


def screened(folder, name: str = "screened", evaluations: tuple[str, ...] = ()) -> Artifact:
    config = {"evaluations": screen.Evaluations(evaluations), "execution": Execution()}
    return screen.run(output(folder, name), **inputs(folder), **config)


def test_every_capped_document_has_its_evidence_and_its_shingles(tmp_path):
    artifact = screened(tmp_path)
    table = parquet.read(artifact)
    capped = [o for o in range(len(TEXTS)) if o % 7 != 6 and not 10 <= o < 15]
    assert table["ordinal"].to_pylist() == capped
    assert table["words"].to_pylist() == [len(TEXTS[o].split()) if o != 2 else 0 for o in capped]
    assert table["language"].to_pylist() == [{1: "de", 2: "und", 3: "und"}.get(o, language(TEXTS[o])) for o in capped]
    assert language(ENGLISH) == "en"
    assert table["source"].to_pylist() == [f"site {o % 2}" for o in capped]
    assert set(table["contaminated_by"].to_pylist()) == set(table["contaminated_item"].to_pylist()) == {""}
    stored = Shingles(artifact, [])
    order = np.random.default_rng(0).permutation(len(capped))
    gathered = stored.gather(order)
    bounds = np.cumsum(gathered.lengths_T)[:-1]
    for place, found in zip(order, np.split(gathered.hashes, bounds), strict=True):
        np.testing.assert_array_equal(found, shingles(TEXTS[capped[place]]))
    assert artifact.stats["documents"] == len(capped)


def test_places_say_where_a_shingle_begins(tmp_path):
    """From a wrong place, own text would be taken for boilerplate."""
    artifact = screened(tmp_path)
    hashes, places, offsets = (mapped(artifact.shards(".npy", name)[0]) for name in ("hashes", "places", "offsets"))
    words = TEXTS[4].split()
    found = dict(zip(hashes[offsets[4] :].tolist(), places[offsets[4] :].tolist(), strict=True))
    assert found == {int(shingles(" ".join(words[place : place + 13]))[0]): place for place in range(len(words) - 12)}


def test_a_document_that_holds_an_item_names_it(tmp_path):
    (tmp_path / "set.jsonl").write_text(f'{{"query": "irrelevant"}}\n{{"query": "{GERMAN}"}}\n')
    table = parquet.read(screened(tmp_path, evaluations=(str(tmp_path / "set.jsonl"),))).to_pylist()
    held = {
        row["ordinal"]: (row["contaminated_by"], row["contaminated_item"]) for row in table if row["contaminated_by"]
    }
    assert held == {ordinal: ("set.jsonl", f"line 2: {GERMAN[:80]}") for ordinal in (1, 4)}


def test_a_set_of_which_nothing_can_be_found_is_an_error(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"query": "too short"}\n')
    with pytest.raises(SbpError, match="none of the 1 items .*set.jsonl"):
        screened(tmp_path, evaluations=(str(tmp_path / "set.jsonl"),))


class Killed(BaseException):
    """Stands for the death of the process, which no task is tried again after."""


def dying(monkeypatch, files: int) -> None:
    """Ends the process while it writes the last of so many files."""
    original, left = Output.writing, [files]

    @contextmanager
    def writing(self, name):
        with original(self, name) as file:
            yield file
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    monkeypatch.setattr(Output, "writing", writing)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole, made = screened(tmp_path, "whole"), inputs(tmp_path)
    config = {"evaluations": screen.Evaluations(), "execution": Execution()}
    deaths, resumed = 0, None
    while resumed is None and deaths < 100:
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, 2 + deaths % 4)  # the longest of these lives finishes the four files of a shard
            try:
                resumed = screen.run(output(tmp_path, "resumed"), **made, **config)
            except Killed:
                deaths += 1
    assert deaths >= len(whole.files) - 4, "a shard whose files are not all there is made again"
    assert (resumed.files, resumed.stats) == (whole.files, whole.stats)
