"""The evidence about pairs: counted shard by shard as in one table, sampled without favour, readable in a terminal."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from sbp_jax import cli
from sbp_jax.artifacts import Artifact
from sbp_jax.config import Experiment, Pairs
from sbp_jax.report import pair_samples, pair_text
from sbp_jax.report.pair_samples import excerpt
from sbp_jax.report.pairs import HUBS, SOURCES, evidence
from tests.test_report import HOSTILE, _tables, pair_table

DOCUMENTS, NEAR = 300, 12
SETTINGS = Pairs(threshold=0.6, near_duplicate=0.5)
VERDICTS = ("accepted", "accepted", "hub", "near_duplicate", "length")
BREAKS = {"documents": [100, 250], "neighbors": [1001, 2003, 2004], "screened": [17], "pairs": [5, 500, 777]}
TEXTS = [f"{HOSTILE} Text {number}, about the sea and its ships." for number in range(DOCUMENTS)]


def _cut(table: pa.Table, places: Sequence[int]) -> list[pa.Table]:
    bounds = [0, *(place for place in places if place < table.num_rows), table.num_rows]
    return [table.slice(start, stop - start) for start, stop in zip(bounds, bounds[1:], strict=False)]


def _planted(documents: int = DOCUMENTS) -> dict[str, pa.Table]:
    """Neighbours with a few hubs, and what the stages make of them."""
    random = np.random.default_rng(3)
    query = np.repeat(np.arange(documents), NEAR)
    neighbor = random.integers(0, documents, len(query))
    neighbor[::NEAR] = np.where(query[::NEAR] % 7 == 3, 0, np.where(query[::NEAR] % 2 == 1, 4, query[::NEAR] // 9 * 2))
    similarity = random.uniform(0.3, 1.0, len(query)).astype(np.float32)
    similarity[40] = SETTINGS.threshold  # the very threshold counts as reached
    order = np.lexsort((neighbor, -similarity, query))
    query, neighbor, similarity = query[order], neighbor[order], similarity[order]
    kept = similarity >= np.float32(SETTINGS.threshold - 0.05)
    d1, d2, near = query[kept], neighbor[kept], similarity[kept]
    above = near >= np.float32(SETTINGS.threshold)
    verdict = np.where(above, np.array(VERDICTS)[random.integers(0, len(VERDICTS), len(d1))], "too_distant")
    target_rank = np.full(len(d1), -1)
    for target in np.unique(d2):
        places = np.flatnonzero((d2 == target) & above)
        target_rank[places[np.argsort(-near[places], kind="stable")]] = np.arange(len(places))
    columns = {"containment": random.beta(0.3, 1, len(d1)), "tokens": random.integers(50, 600, len(d1))}
    sources = [f"source-{min(number % 16, 11)}" for number in range(documents)]
    screened = {"ordinal": range(documents), "source": sources, "language": ["en", "de"] * (documents // 2)}
    screened |= {"contaminated_by": ["", "", "trivia"] * (documents // 3)}
    return {
        "documents": pa.table({"ordinal": range(documents), "id": range(documents), "text": TEXTS[:documents]}),
        "neighbors": pa.table({"query": query, "neighbor": neighbor, "similarity": similarity}),
        "screened": pa.table(screened),
        "pairs": pair_table(d1, d2, near, verdict.tolist(), target_rank=target_rank, **columns),
    }


PLANTED = _planted()
PLANTED["documents"] = PLANTED["documents"].set_column(1, "id", pa.array([f"doc-{n}" for n in range(DOCUMENTS)]))


def _artifacts(folder: Path, breaks: dict[str, list[int]] | None = None) -> dict[str, Artifact]:
    stats = {"neighbors": {"backend": "scann", "recall_at_1": 0.998, "recall_at_k": 0.97, "audited_queries": 500}}
    cuts = breaks or {}
    return {name: _tables(folder / name, _cut(t, cuts.get(name, [])), stats.get(name)) for name, t in PLANTED.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _artifacts(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _artifacts(tmp_path_factory.mktemp("cut"), BREAKS)


def _columns(name: str) -> Any:
    return SimpleNamespace(**{column: PLANTED[name][column].to_numpy() for column in PLANTED[name].column_names})


def test_shards_change_nothing(whole: dict[str, Artifact], cut: dict[str, Artifact]) -> None:
    """Guards every count that crosses a shard: a document whose pairs go on in the next one, hubs, samples."""
    assert len(cut["pairs"].files) == 4
    assert evidence(**cut, settings=SETTINGS) == evidence(**whole, settings=SETTINGS)
    assert _sampled(cut) == _sampled(whole)


def _sampled(made: dict[str, Artifact], number: int = 3) -> dict[str, Any]:
    return pair_samples.sample(made["pairs"], made["documents"], number)


def test_the_sweep_counts_what_a_plain_filter_counts(cut: dict[str, Artifact]) -> None:
    told, near, pairs = evidence(**cut, settings=SETTINGS), _columns("neighbors"), _columns("pairs")
    good = np.isin(pairs.verdict, ["accepted", "too_distant"])
    assert [row["threshold"] for row in told["sweep"]][:8] == [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65]
    for row in told["sweep"]:
        least = np.float32(row["threshold"])
        assert row["neighbors"] == np.count_nonzero(near.similarity >= least)
        assert row["documents"] == len(np.unique(near.query[near.similarity >= least]))
        reached = good & (pairs.similarity >= least)
        counted = (np.count_nonzero(reached), len(np.unique(pairs.d1[reached])), pairs.tokens[reached].sum())
        known = row["threshold"] >= 0.55  # of less similar ones no pair was kept
        assert (row["accepted"], row["accepted_documents"], row["tokens"]) == (counted if known else (None,) * 3)
        assert row["certain"] == (row["threshold"] >= SETTINGS.threshold)
    (own,) = [row for row in told["sweep"] if row["threshold"] == SETTINGS.threshold]
    assert own["accepted"] == told["verdicts"]["accepted"]
    assert own["accepted_documents"] == told["documents_with_pairs"]
    assert sum(told["histogram"]["neighbors"]) == told["neighbors"] == len(near.query)
    rates = told["near_duplicates"]
    assert sum(rates["pairs"]) == len(pairs.d1)
    assert sum(rates["near_duplicates"]) == np.count_nonzero(pairs.containment >= 0.5)


def test_hubs_are_the_documents_most_often_targeted(cut: dict[str, Artifact]) -> None:
    pairs = _columns("pairs")
    targeted = Counter(pairs.d2[pairs.similarity >= np.float32(SETTINGS.threshold)].tolist())
    accepted = Counter(pairs.d2[pairs.verdict == "accepted"].tolist())
    expected = sorted(targeted, key=lambda document: (-targeted[document], document))[:HUBS]
    hubs = evidence(**cut, settings=SETTINGS)["hubs"]
    assert [hub["ordinal"] for hub in hubs] == expected and {0, 4} <= set(expected)
    assert [hub["targeted"] for hub in hubs] == [targeted[document] for document in expected]
    assert [hub["accepted"] for hub in hubs] == [accepted[document] for document in expected]
    assert [hub["id"] for hub in hubs] == [f"doc-{document}" for document in expected]


def test_sources_add_up_and_the_rare_ones_are_one_row(cut: dict[str, Artifact]) -> None:
    told, pairs, documents = evidence(**cut, settings=SETTINGS), _columns("pairs"), _columns("screened")
    sources = told["sources"]
    assert len(sources["names"]) == SOURCES and sources["others"] == 12 - SOURCES
    assert sources["names"][0] == "source-11"  # the largest
    place = {name: index for index, name in enumerate(sources["names"])}
    expected = np.zeros((SOURCES + 1, SOURCES + 1), int)
    for d1, d2, verdict in zip(pairs.d1, pairs.d2, pairs.verdict, strict=True):
        if verdict == "accepted":
            expected[place.get(documents.source[d1], SOURCES), place.get(documents.source[d2], SOURCES)] += 1
    assert sources["pairs"] == expected.tolist()
    languages = {"de": DOCUMENTS // 2, "en": DOCUMENTS // 2}
    assert told["screened"] == {"documents": 300, "languages": languages, "contaminated": {"trivia": 100}}


def test_samples_are_of_every_verdict_and_of_no_place(cut: dict[str, Artifact]) -> None:
    """Guards against a sample of the first shard alone, and against texts of other documents."""
    samples = _sampled(cut, 40)
    assert list(samples)[0] == "accepted" and set(samples) == {*VERDICTS, "too_distant"}
    assert all(len(rows) == 40 and {row["verdict"] for row in rows} == {name} for name, rows in samples.items())
    first = np.array([row["d1"] for rows in samples.values() for row in rows])
    assert abs(first.mean() - DOCUMENTS / 2) < 4 * DOCUMENTS / np.sqrt(12 * len(first))  # as a uniform one's would be
    for row in samples["hub"]:
        assert (row["d1_id"], row["d2_text"]) == (f"doc-{row['d1']}", TEXTS[row["d2"]])
    assert list(pair_samples.sample(cut["pairs"], cut["documents"], 1, ["hub"])) == ["hub"]


def test_an_excerpt_shows_a_shared_run_wherever_it_is() -> None:
    words = [f"word{number}" for number in range(600)]
    run = "these thirteen words in a row stand in both of the two texts"
    one = f"{' '.join(words[:400])} {run} {' '.join(words[400:])}"
    pieces = excerpt(one, f"Other text. {run.upper()}! The end.", 500)
    assert [piece for piece, kind in pieces if kind == "run"] == [run]
    assert pieces[0][0].startswith("word0 word1 ") and [kind for _, kind in pieces].count("gap") == 2
    shown = [piece for piece, kind in pieces if kind != "gap"]
    left_out = sum(int(piece.split("[")[1].split()[0].replace(",", "")) for piece, kind in pieces if kind == "gap")
    assert sum(map(len, shown)) + left_out == len(one) and sum(map(len, shown)) <= 500 + 80
    assert all(piece in one for piece in shown)
    twelve = " ".join(run.split()[:12])
    assert "run" not in {kind for _, kind in excerpt(f"{twelve} or so", f"or {twelve} then", 500)}
    assert "".join(piece for piece, _ in excerpt("short", run)) == "short"


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_of_any_width_shows_it_and_obeys_no_document(cut: dict[str, Artifact], width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), highlight=False)
    pair_text.show(evidence(**cut, settings=SETTINGS), _sampled(cut, 1), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    told = "\n".join(lines)
    assert "\x1b" not in told and "<script>" in told
    for said in ("0.6 *", "99.80%", "near_duplicate: 1 of", "4 others", "item of trivia", "doc-4 "):
        assert said in told, said


def test_without_pairs_the_rest_is_still_told(tmp_path: Path) -> None:
    """Guards runs whose every pair was rejected, and searches that found nothing."""
    tables = {name: table.slice(0, 0) for name, table in PLANTED.items()}
    made = {name: _tables(tmp_path / name, [table]) for name, table in tables.items()}
    told = evidence(**made, settings=SETTINGS)
    assert told["hubs"] == told["sweep"] == [] and told["sources"]["names"] == [] and told["documents_with_pairs"] == 0
    pair_text.show(told, _sampled(made), Console(file=open("/dev/null", "w")))


_POOLS: list[pa.MemoryPool] = []  # what was allocated from one may be freed after the test, and needs it


def test_memory_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    def most(copies: int) -> int:
        """Bytes that Arrow held at once while reading each shard `copies` times."""
        made = {name: _tables(tmp_path / f"{name}-{copies}", [table] * copies) for name, table in PLANTED.items()}
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        _POOLS.append(pool)
        pa.set_memory_pool(pool)
        try:
            pair_samples.sample(made["pairs"], made["documents"], 2)
            evidence(**made, settings=SETTINGS)
        finally:
            pa.set_memory_pool(before)
        return pool.max_memory()

    assert most(12) < 1.5 * most(2)


def _command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: dict[str, Artifact], *options: str
) -> tuple[int, str, str]:
    experiment = Experiment(name="planted", pairs=SETTINGS)
    pipeline = SimpleNamespace(nodes=PLANTED, artifact=made.get, experiment=experiment, workdir="runs/planted")
    monkeypatch.setattr(cli, "_pipeline", lambda _: pipeline)
    status = cli.main(["pairs", "inspect", "configs/quickstart.py", *options])
    return status, *capsys.readouterr()


def test_inspect_is_a_command_for_people_and_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: dict[str, Artifact]
) -> None:
    status, out, _ = _command(monkeypatch, capsys, cut, "--json", "--samples", "2", "--verdict", "hub", "-v", "length")
    told = json.loads(out)
    assert status == 0 and {name: len(rows) for name, rows in told.pop("samples").items()} == {"hub": 2, "length": 2}
    assert told == json.loads(json.dumps(evidence(**cut, settings=SETTINGS)))
    status, out, _ = _command(monkeypatch, capsys, cut)
    assert status == 0 and "accepted: 2 of" in out and "\x1b" not in out
    status, _, err = _command(monkeypatch, capsys, cut, "--verdict", "bad")
    assert status == 2 and "no pair is bad; the verdicts are" in err
    status, _, err = _command(monkeypatch, capsys, {name: cut[name] for name in ("documents", "neighbors")})
    assert status == 2 and "screened, pairs: not complete in runs/planted" in err
