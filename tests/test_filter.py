"""The filter stage: planted faults, each rejected with its own reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, Filters
from sbp_jax.data import synthetic
from sbp_jax.errors import SbpError
from sbp_jax.parallel import executor
from sbp_jax.stages import filter as stage
from sbp_jax.stages import screen
from sbp_jax.text.contamination import Evaluations


def _words(seed: int, length: int = 60) -> list[str]:
    return [f"w{number}" for number in np.random.default_rng(seed).integers(0, 10_000, length)]


def _text(seed: int, length: int = 60) -> str:
    return " ".join(_words(seed, length))


def _edited(text: str, every: int) -> str:
    return " ".join("edited" if place % every == every - 1 else word for place, word in enumerate(text.split()))


GERMAN = (
    "Die Kernfusion ist eine Reaktion, bei der zwei Atomkerne zu einem neuen, schwereren Kern verschmelzen und dabei"
)
ENGLISH = (
    "Nuclear fusion is a reaction in which two atomic nuclei combine to form one new and heavier nucleus, and which"
)
ITEM = "which of these planets is the largest one in the solar system by far"
# Real documents: seeds 0 to 2, another capped one, then those that are not capped.
SEED, SECOND, FLUENT, OTHER = _text(100, 400), _text(101, 100), ENGLISH, _text(102, 100)
ORACLE, TEST, VALIDATION = _text(103), _text(104), f"{_text(105)} {' '.join(OTHER.split()[:50])}"
REAL = (SEED, SECOND, FLUENT, OTHER, ORACLE, TEST, VALIDATION)
SPLITS = ("capped", "capped", "capped", "capped", "oracle", "test", "validation")
CLEAN = (_text(0), _text(1), _text(2))


def _artifact(path: Path, tables: list[pa.Table]) -> Artifact:
    output = Output(epath.Path(path), Recipe(path.name, 1, {}, {}), path.name)
    for index, table in enumerate(tables):
        output.shard(index, ".parquet", lambda writing, table=table: parquet.write(writing, table))  # type: ignore[misc]
    return output.finish()


def _row(text: str, finish: str = "end", read: tuple[int, ...] = (0,), **more: Any) -> dict[str, Any]:
    """A synthetic document; the rest of its columns say nothing."""
    seed = {"seed": read[0]} if read else {}
    return seed | {"text": text, "finish": finish, "conditioning": list(read) if read else None} | more


FAULTS = {
    "loop": _row(_text(10), "loop"),
    "unfinished": _row(_text(11), "length"),
    "too_short": _row(_text(12, 19)),
    "too_long": _row(_text(13, 301)),
    "repetition": _row("the cat sat on the mat and " * 10),
    "seed_run": _row(f"{_text(14, 200)} {' '.join(SEED.split()[100:151])}"),
    "seed_overlap": _row(f"{_text(15, 20)} {' '.join(SECOND.upper().split()[:45])}", read=(0, 1)),
    "copied": _row(f"{_text(16, 20)} {OTHER.title()}"),
    "held_out": _row(f"{_text(17, 100)} {' '.join(TEST.split()[:30])}"),
    "contaminated": _row(f"{_text(18)} {ITEM} {_text(19)}"),
    "language": _row(f"{GERMAN} {_text(20)}", read=(3, 2), seed=2),
    "sibling": _row(_edited(CLEAN[0], 40) + " more"),
    "duplicate": _row(f"{_edited(CLEAN[1], 40)} and more", read=()),
}
FILTERS = Filters(max_words=300, same_language=True)


def _shards() -> list[list[dict[str, Any]]]:
    faults = list(FAULTS.values())
    return [[_row(CLEAN[0]), *faults[:4]], [], [_row(CLEAN[1]), *faults[4:], _row(CLEAN[2], read=())]]


def _inputs(folder: Path, shards: list[list[dict[str, Any]]]) -> dict[str, Artifact]:
    (folder / "set.jsonl").write_text(f'{{"query": "{ITEM}"}}\n')
    count = len(REAL)
    real = {"ordinal": range(count), "id": [f"doc-{i}" for i in range(count)], "source": ["here"] * count, "text": REAL}
    documents = pa.table({name: list(column) for name, column in real.items()})
    splits = pa.table({"ordinal": list(range(count)), "split": list(SPLITS)})
    made = {
        "documents": _artifact(folder / "documents", [documents.slice(0, 3), documents.slice(3)]),
        "splits": _artifact(folder / "splits", [splits.slice(0, 3), splits.slice(3)]),
    }
    output = Output(epath.Path(folder / "screened"), Recipe("screen", 1, {}, {}), "screened")
    made["screened"] = screen.run(output, **made, evaluations=Evaluations(), execution=Execution())
    ordinal, tables = 0, []
    for shard in shards:
        rows = [row | {"ordinal": ordinal + place, "id": f"syn-{ordinal + place}"} for place, row in enumerate(shard)]
        ordinal += len(shard)
        tables.append(pa.Table.from_pylist(rows, synthetic.SCHEMA))
    return made | {"synthesized": _artifact(folder / "synthesized", tables)}


def _run(folder: Path, shards: list[list[dict[str, Any]]], filters: Filters = FILTERS, output: str = "out") -> Artifact:
    return _filter(folder, _inputs(folder, shards), filters, output)


def _filter(
    folder: Path,
    inputs: dict[str, Artifact],
    filters: Filters = FILTERS,
    output: str = "out",
    execution: Execution | None = None,
) -> Artifact:
    target = Output(epath.Path(folder / output), Recipe("filter", 1, {}, {}), "filter")
    sets = Evaluations((str(folder / "set.jsonl"),))
    return stage.run(target, **inputs, evaluations=sets, filters=filters, execution=execution or Execution())


def _verdicts(artifact: Artifact) -> dict[str, str]:
    """The verdict on each document by its id."""
    rows = [*parquet.read(artifact).to_pylist(), *parquet.read(artifact, prefix="rejected").to_pylist()]
    return {row["id"]: row["verdict"] for row in rows}


def test_planted_faults_are_rejected_with_their_reason_and_clean_ones_kept(tmp_path: Path) -> None:
    artifact = _run(tmp_path, _shards())
    accepted = parquet.read(artifact).to_pylist()
    assert [row["text"] for row in accepted] == list(CLEAN)
    assert [row["ordinal"] for row in accepted] == [0, 1, 2]
    assert [row["id"] for row in accepted] == ["syn-0", "syn-5", "syn-15"]
    assert [row["seed"] for row in accepted] == [0, 0, None]  # lineage stays
    assert all(row["words"] == 60 and row["repetition"] < 0.05 and row["copied"] == 0 for row in accepted)
    assert {row["rule_version"] for row in accepted} == {stage.VERSION}
    rejected = parquet.read(artifact, prefix="rejected").to_pylist()
    assert {row["verdict"]: row["text"] for row in rejected} == {name: row["text"] for name, row in FAULTS.items()}
    assert {name for row in rejected for name, value in row.items() if value is None} <= {
        *synthetic.SCHEMA.names,  # unknown here
        *("seed_common", "seed_overlap", "seed_language", "copy_of"),  # without a seed, or without a copy
    }
    stats = {"documents": 16, "accepted": 3, "bytes": sum(len(text.encode()) for text in CLEAN), "trimmed": 0}
    stats |= {f"rejected_{reason}": 1 for reason in FAULTS}
    assert {name: artifact.stats[name] for name in stats} == stats
    assert set(stage.REMEDIES) == set(FAULTS)
    assert not (artifact.path / "scratch").exists()


@pytest.mark.parametrize("verdict", [name for name in FAULTS if name != "loop"])
def test_each_rule_has_a_field_that_lets_its_document_through(tmp_path: Path, verdict: str) -> None:
    """Guards against a rule that hides behind another, so that its field changes nothing."""
    loose: dict[str, Any] = {
        "unfinished": {"unfinished": "keep"},
        "too_short": {"min_words": 19},
        "too_long": {"max_words": None},
        "repetition": {"max_repetition": 1.0},
        "seed_run": {"max_seed_run": 51},
        "seed_overlap": {"max_seed_overlap": 0.7, "max_copied": 0.7},
        "copied": {"max_copied": 1.0},
        "held_out": {"max_held_out": 0.2},
        "language": {"same_language": False},
        "sibling": {"near_sibling": 0.9},
        "duplicate": {"near_duplicate": 0.9},
        "contaminated": {},
    }
    shards = [[_row(CLEAN[0]), _row(CLEAN[1]), FAULTS[verdict]]]
    inputs = _inputs(tmp_path, shards)
    assert _verdicts(_filter(tmp_path, inputs))["syn-2"] == verdict
    if verdict == "contaminated":
        (tmp_path / "set.jsonl").write_text('{"query": "another thing that no document has in it at all"}\n')
    assert _verdicts(_filter(tmp_path, inputs, replace(FILTERS, **loose[verdict]), "loose"))["syn-2"] == "accepted"


def test_scores_are_fractions_of_the_document(tmp_path: Path) -> None:
    """Guards the denominators: 80 words hold 68 shingles of 13, 48 of them whole inside the 60 copied words."""
    rows = [_row(f"{_text(3, 20)} {' '.join(source.split()[:60])}") for source in (SEED, OTHER, TEST)]
    unread = _row(rows[0]["text"], read=())
    made = _run(tmp_path, [[*rows, unread, _row(CLEAN[0])]])
    scored = {row["id"]: row for part in ("part", "rejected") for row in parquet.read(made, prefix=part).to_pylist()}
    found = [[scored[f"syn-{i}"][n] for n in ("seed_common", "seed_overlap", "copied", "held_out")] for i in range(5)]
    share = pytest.approx(48 / 68)
    assert found[0] == [60, share, share, 0] and found[3] == [None, None, share, 0]
    assert [row[1:] for row in (found[1], found[2], found[4])] == [[0, share, 0], [0, 0, share], [0, 0, 0]]
    assert max(found[place][0] for place in (1, 2, 4)) <= 1  # a word that two random texts may share


def test_text_that_a_capped_document_has_too_is_not_held_out(tmp_path: Path) -> None:
    """Guards against rejecting what every arm has seen anyway."""
    copy = _row(f"{_text(3, 100)} {' '.join(OTHER.split()[:40])}")
    made = _run(tmp_path, [[copy]], replace(FILTERS, max_held_out=0.0))
    (row,) = parquet.read(made).to_pylist()
    assert row["held_out"] == 0 and row["copied"] == pytest.approx(28 / 128)


def test_documents_that_the_models_never_see_are_no_source_of_copies(tmp_path: Path) -> None:
    """Guards against a filter that looks at documents which the capped arms never see."""
    assert _run(tmp_path, [[_row(ORACLE)]]).stats["accepted"] == 1


def test_documents_cut_by_length_go_by_the_policy(tmp_path: Path) -> None:
    sentence = f"{_text(6, 30)} end. "
    shard = [_row(sentence + _text(7, 9), "length"), _row(_text(8), "length"), _row(sentence.upper() + "X y", "end")]
    inputs = _inputs(tmp_path, [shard, [_row(CLEAN[0])]])
    trimmed = _filter(tmp_path, inputs, replace(FILTERS, unfinished="trim", near_sibling=1.0), "trim")
    rows = parquet.read(trimmed).to_pylist()
    assert [(row["text"], row["trimmed"]) for row in rows[:1]] == [(sentence.strip(), " " + _text(7, 9))]
    assert rows[0]["words"] == 31 and trimmed.stats["trimmed"] == 1
    assert _verdicts(trimmed)["syn-1"] == "unfinished"
    kept = _filter(tmp_path, inputs, replace(FILTERS, unfinished="keep"), "keep")
    assert [row["text"] for row in parquet.read(kept).to_pylist()][:2] == [shard[0]["text"], shard[1]["text"]]
    assert kept.stats["trimmed"] == 0


def test_the_first_of_many_copies_stays_and_those_of_rejected_ones_are_none(tmp_path: Path) -> None:
    """Guards against copies of what nobody keeps, chains that take all with them, and first ones that hide others."""
    words = _words(30, 120)
    chain = [" ".join(words[start : start + 60]) for start in (0, 20, 40)]  # each half of the next, the third none of 1
    shards = [
        [*(_row(CLEAN[0], "loop") for _ in range(4)), _row(CLEAN[0]), _row(chain[0])],
        [_row(chain[1], read=(1,)), _row(chain[2], read=(2,)), _row(CLEAN[0]), _row(CLEAN[0], read=(1,))],
        [_row(" ".join(words[40:80]), read=(3,)), _row(CLEAN[1], read=()), _row(CLEAN[1], read=())],
    ]
    artifact = _run(tmp_path, shards)
    assert _verdicts(artifact) == {
        **{f"syn-{place}": "loop" for place in range(4)},
        "syn-4": "accepted",
        "syn-5": "accepted",
        "syn-6": "duplicate",  # of the first of the chain
        "syn-7": "accepted",  # like the second, which is gone
        "syn-8": "sibling",
        "syn-9": "duplicate",
        "syn-10": "duplicate",  # inside the second and the third
        "syn-11": "accepted",
        "syn-12": "duplicate",  # two without a seed are no siblings
    }
    rejected = {row["id"]: row for row in parquet.read(artifact, prefix="rejected").to_pylist()}
    of = {name: row["copy_of"] for name, row in rejected.items() if row["verdict"] != "loop"}
    assert of == {"syn-6": 5, "syn-8": 4, "syn-9": 4, "syn-10": 7, "syn-12": 11}
    assert rejected["syn-8"]["sibling"] == 1 and rejected["syn-9"]["duplicate"] == 1
    assert all(rejected[f"syn-{place}"]["sibling"] == 0 for place in range(4))


class Killed(BaseException):
    """Stands for the death of the process, which no task is tried again after."""


@contextmanager
def _dying(patch: pytest.MonkeyPatch, files: int) -> Iterator[None]:
    """Ends the process while it writes the last of so many files, that one cut off."""
    original, left = Output.writing, [files]

    @contextmanager
    def writing(self: Output, name: str) -> Iterator[Any]:
        with original(self, name) as file:
            yield file
            left[0] -= 1
            if left[0] == 0:
                content = Path(file.path).read_bytes()
                Path(file.path).write_bytes(content[: len(content) // 2])
                raise Killed

    patch.setattr(Output, "writing", writing)
    yield


def test_a_run_killed_at_every_file_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Guards verdicts on copies and ordinals, which depend on all earlier shards, against shards that were skipped."""
    inputs = _inputs(tmp_path, _shards())
    whole, deaths, resumed = _filter(tmp_path, inputs), 0, None
    while resumed is None:
        assert deaths < 200
        with pytest.MonkeyPatch.context() as patch, _dying(patch, 2 + deaths % 4):  # at most the four files of a shard
            try:
                resumed = _filter(tmp_path, inputs, output="resumed")
            except Killed:
                deaths += 1
    assert deaths > len(whole.files)
    assert (resumed.files, resumed.stats) == (whole.files, whole.stats)
    (tmp_path / "resumed" / "part-00002.parquet").unlink()
    assert _filter(tmp_path, inputs, output="resumed").files == whole.files


def test_processes_write_the_bytes_that_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(tmp_path, _shards())
    alone = _filter(tmp_path, inputs, execution=Execution(workers=1))
    monkeypatch.setattr(executor, "POOL_SECONDS", 0.0)
    made = _filter(tmp_path, inputs, output="processes", execution=Execution(workers=2))
    assert (made.files, made.stats) == (alone.files, alone.stats)


def test_a_bloom_filter_gives_the_verdicts_of_the_exact_index_and_says_its_error(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, _shards())
    exact, bloom = (_filter(tmp_path, inputs, replace(FILTERS, index=kind), kind) for kind in ("exact", "bloom"))
    assert _verdicts(bloom) == _verdicts(exact)
    assert exact.stats["index_error"] == 0 and 0 < bloom.stats["index_error"] < 0.01
    assert exact.stats["index_shingles"] == bloom.stats["index_shingles"] == 388 + 88 + 88 + len(ENGLISH.split()) - 12


def test_texts_without_words_and_without_seeds_are_no_obstacle(tmp_path: Path) -> None:
    shards = [[_row(""), _row("… !", read=()), _row("", "length")], [_row(CLEAN[0], read=())]]
    artifact = _run(tmp_path, shards, replace(FILTERS, min_words=0, unfinished="trim"))
    verdicts = _verdicts(artifact)
    assert verdicts == {"syn-0": "too_short", "syn-1": "too_short", "syn-2": "unfinished", "syn-3": "accepted"}
    assert parquet.read(artifact)["ordinal"].to_pylist() == [0]


def test_nothing_accepted_says_why_and_which_field_to_loosen(tmp_path: Path) -> None:
    shard = [_row(_text(7, 5)), _row(_text(8, 5)), _row(_text(9), "length")]
    with pytest.raises(SbpError, match=r"all 3 .* \(too_short 2, unfinished 1\); lower filters.min_words"):
        _run(tmp_path, [shard])


def test_no_documents_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match="there are no synthetic documents"):
        _run(tmp_path, [[]])


def test_a_missing_evaluation_set_is_an_error_that_names_it(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, _shards())
    (tmp_path / "set.jsonl").unlink()
    with pytest.raises(SbpError, match="set.jsonl cannot be read .*; check pairs.decontaminate"):
        _filter(tmp_path, inputs)
