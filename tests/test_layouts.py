"""Megadocs and related documents side by side: what stands in which order, who sees whom, and how it is found again."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx

from sbp_jax.artifacts import Artifact, arrayrecord, parquet
from sbp_jax.config import Execution, Model
from sbp_jax.data import rows as rows_module
from sbp_jax.data.context_path import path
from sbp_jax.data.megadocs import stitched
from sbp_jax.data.packing import pack, pack_joined
from sbp_jax.data.rows import ROW_TARGETS, SYNTHETIC, Row, RowSource
from sbp_jax.data.stream_order import finder, shuffled
from sbp_jax.model.decoder import Decoder
from sbp_jax.stages import pack as stage
from tests.lineage import output_of
from tests.test_packing import CONFIG, SPLITS, TEXTS, E, artifacts, random_documents

CAPPED = [ordinal for ordinal, name in enumerate(SPLITS) if name == "capped"]
# Seed and sample of each synthetic document, out of order as passes over the seeds leave them.
WRITTEN = [(2, 0), (8, 0), (14, 0), (8, 1), (26, 0), (2, 2), (2, 1), (8, 10), (14, 9)]
CONTEXT = 32


def neighbors_of(folder: Path, edges: dict[int, list[int]]) -> Artifact:
    """Nearest first, in two shards."""
    rows = [(query, other) for query in sorted(edges) for other in edges[query]]
    half = len(rows) // 2
    output = output_of(folder)
    for index, part in enumerate((rows[:half], rows[half:])):
        queries, others = zip(*part, strict=True) if part else ((), ())
        table = pa.table({"query": pa.array(queries, pa.int64()), "neighbor": pa.array(others, pa.int64())})
        output.shard(index, ".parquet", lambda writing, table=table: parquet.write(writing, table))
    return output.finish()


def slow_path(ordinals: list[int], edges: dict[int, list[int]]) -> list[int]:
    """The definition of the path, one document at a time."""
    degree = {ordinal: sum(others.count(ordinal) for others in edges.values()) for ordinal in ordinals}
    place = {int(ordinal): number for number, ordinal in enumerate(shuffled(np.array(ordinals)))}
    left, order = set(ordinals), []
    while left:
        document = min(left, key=lambda ordinal: (degree[ordinal], place[ordinal]))
        while document is not None:
            left.remove(document)
            order.append(document)
            document = next((other for other in edges.get(document, []) if other in left), None)
    return order


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Real documents, synthetic ones with their tokens, and rows of both layouts."""
    folder = tmp_path_factory.mktemp("layouts")
    made = artifacts(folder)
    seeds, samples = zip(*WRITTEN, strict=True)
    columns = {"ordinal": range(len(WRITTEN)), "seed": seeds, "sample": samples}
    table = pa.table(columns | {"text": [f"written {number}" for number in range(len(WRITTEN))]})
    output = output_of(folder / "synthetic")
    for index, part in enumerate((table.slice(0, 4), table.slice(4))):
        output.shard(index, ".parquet", lambda writing, part=part: parquet.write(writing, part))
    made["synthetic"] = output.finish()
    records = [np.full(3 * number, 200 + number, "<i4").tobytes() for number in range(len(WRITTEN))]
    output = output_of(folder / "tokens-synthetic")
    output.shard(0, ".array_record", lambda writing: arrayrecord.write(writing, records))
    made["synthetic_tokens"] = output.finish()
    random = np.random.default_rng(0)
    edges = {ordinal: random.permutation(CAPPED)[:3].tolist() for ordinal in CAPPED[:-1]}
    made["neighbors"] = neighbors_of(folder / "neighbors", edges)
    for name, stream in (("megadoc", "megadoc"), ("in-context", "capped")):
        made[name] = packed(folder, name, stream, made)
    return made


def packed(folder: Path, name: str, stream: str, made: dict[str, Artifact]) -> Artifact:
    roles = ["documents", "tokens", "tokenizer"]
    roles += ["synthetic", "synthetic_tokens"] if stream == "megadoc" else ["splits", "neighbors"]
    inputs = {role: made[role] for role in roles}
    how = {"stream": stream, "context": CONTEXT, "settings": CONFIG, "execution": Execution()}
    return stage.run(output_of(folder / name), **inputs, **how)


def all_rows(artifact: Artifact) -> list[Row]:
    source = RowSource(artifact)
    return [source[number] for number in range(len(source))]


def targets(rows: list[Row]) -> list[tuple[int, int]]:
    """Document and token of every target, in order."""
    found = []
    for row in rows:
        found += list(zip(row.documents[row.mask].tolist(), row.tokens[1:][row.mask].tolist(), strict=True))
    return found


def test_a_megadoc_is_the_synthetic_documents_of_a_seed_and_then_the_seed(made: dict[str, Artifact]) -> None:
    """A seed before its documents, or a document in the megadoc of another seed, would be another method."""
    order, joined = stitched(made["synthetic"])
    whole: dict[int, list[int]] = {}
    megadoc: list[int] = []
    for document, is_joined in zip(order.tolist(), joined.tolist(), strict=True):
        assert is_joined == bool(megadoc)
        megadoc.append(document)
        if document < SYNTHETIC:
            whole[document] = [entry - SYNTHETIC for entry in megadoc[:-1]]
            megadoc = []
    assert not megadoc and whole == {2: [0, 6, 5], 8: [1, 3, 7], 14: [2, 8], 26: [4]}
    assert list(whole) == shuffled(np.array([2, 8, 14, 26])).tolist()


def test_megadocs_hold_the_tokens_of_their_documents_and_count_the_synthetic_ones(made: dict[str, Artifact]) -> None:
    """Guards the ledger: real tokens that count as synthetic ones, or the other way round."""
    artifact, end = made["megadoc"], targets(all_rows(made["megadoc"]))[-1][1]
    expected = []
    for document in stitched(made["synthetic"])[0].tolist():
        real = document < SYNTHETIC
        number = document if real else document - SYNTHETIC
        tokens = [10 + number] * (number + 1) if real else [200 + number] * (3 * number)
        expected += [(document, token) for token in [*tokens, end]]
    found = targets(all_rows(artifact))
    assert found == expected
    synthetic = sum(document >= SYNTHETIC for document, _ in found)
    stats = artifact.stats
    assert (stats["targets"], stats["synthetic_targets"]) == (len(found), synthetic)
    assert (stats["documents"], stats["synthetic_documents"]) == (4 + len(WRITTEN), len(WRITTEN))
    written = sum(len(f"written {number}") for number in range(len(WRITTEN)))
    assert stats["bytes"] == written + sum(len(TEXTS[ordinal].encode()) for ordinal in (2, 8, 14, 26))
    counted = np.load(artifact.file(ROW_TARGETS))
    assert counted.tolist() == [int((row.documents >= SYNTHETIC).sum()) for row in all_rows(artifact)]


def test_a_document_sees_its_own_megadoc_and_no_other(made: dict[str, Artifact]) -> None:
    """Segments say who sees whom; one that runs on into the next megadoc joins what has nothing in common."""
    order, joined = stitched(made["synthetic"])
    megadoc_of = dict(zip(order.tolist(), np.cumsum(~joined).tolist(), strict=True))
    several = 0
    for row in all_rows(made["megadoc"]):
        for segment in range(1, int(row.segments.max()) + 1):
            places = np.flatnonzero(row.segments == segment)
            assert len({megadoc_of[document] for document in row.documents[places].tolist()}) == 1
            assert row.positions[places].tolist() == list(range(len(places)))
            several += len(set(row.documents[places].tolist())) > 1
        owners = [megadoc_of[document] for document in row.documents[row.mask].tolist()]
        assert len(set(owners)) == row.segments.max(), "one megadoc in a row is one segment"
    assert several > 3


def test_related_documents_hold_every_capped_target_once_in_the_order_of_the_path(made: dict[str, Artifact]) -> None:
    found = targets(all_rows(made["in-context"]))
    table = parquet.read(made["neighbors"])
    edges: dict[int, list[int]] = {}
    for query, other in zip(table["query"].to_pylist(), table["neighbor"].to_pylist(), strict=True):
        edges.setdefault(query, []).append(other)
    order = list(dict.fromkeys(document for document, _ in found))
    assert order == slow_path(CAPPED, edges) != shuffled(np.array(CAPPED)).tolist()
    assert len(found) == sum(ordinal + 2 for ordinal in CAPPED) == made["in-context"].stats["targets"]
    for ordinal in CAPPED:
        own = [token for document, token in found if document == ordinal]
        assert own[:-1] == [10 + ordinal] * (ordinal + 1)
    for row in all_rows(made["in-context"]):
        assert set(row.segments[row.mask].tolist()) == {1}
        assert row.positions[row.mask].tolist() == list(range(int(row.mask.sum())))


@pytest.mark.parametrize("seed", range(6))
def test_the_path_goes_to_the_nearest_document_that_is_left(seed: int, tmp_path: Path) -> None:
    """Against the definition; with documents that have no neighbours, and neighbours that are not in the set."""
    random = np.random.default_rng(seed)
    ordinals = np.sort(random.choice(200, 60, replace=False))
    edges = {}
    for ordinal in ordinals[random.random(60) < 0.9].tolist():
        others = random.choice(np.append(ordinals, [500, 501]), 4, replace=False).tolist()
        edges[ordinal] = [other for other in others if other != ordinal]
    found = path(ordinals, neighbors_of(tmp_path / "neighbors", edges)).tolist()
    assert found == slow_path(ordinals.tolist(), edges) and sorted(found) == ordinals.tolist()


def test_documents_are_found_in_the_rows_of_streams_in_any_order(made: dict[str, Artifact]) -> None:
    """Guards takedown lists: the bisection of shuffled streams finds nothing, or the wrong rows, in these."""
    for name in ("megadoc", "in-context"):
        find, held = finder(made[name]), [set(row.documents.tolist()) for row in all_rows(made[name])]
        for document in [*range(len(TEXTS)), *(SYNTHETIC + number for number in range(len(WRITTEN)))]:
            assert list(find(document)) == [row for row, there in enumerate(held) if document in there]
        assert max(len(find(document)) for document in set().union(*held) - {-1}) > 1


@pytest.mark.parametrize(("name", "stream"), [("megadoc", "megadoc"), ("in-context", "capped")])
def test_a_killed_packing_ends_with_the_same_rows_and_lists(
    made: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stream: str
) -> None:
    """Lengths and counts come from the rows as they pass; those of a finished shard have to pass again."""
    monkeypatch.setattr(rows_module, "ROWS_PER_SHARD", 2)
    whole = packed(tmp_path / "whole", name, stream, made)
    write = arrayrecord.write

    def die(writing, records):
        if "00001" in writing.path.name:
            raise KeyboardInterrupt
        write(writing, records)

    monkeypatch.setattr(arrayrecord, "write", die)
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path / "killed", name, stream, made)
    monkeypatch.setattr(arrayrecord, "write", write)
    resumed = packed(tmp_path / "killed", name, stream, made)
    assert (resumed.files, resumed.stats) == (whole.files, whole.stats) and len(whole.files) > 3


MODEL = Model(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=64)
VOCABULARY = 128


def logits(tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> np.ndarray:
    decoder = Decoder(MODEL, VOCABULARY, nnx.Rngs(0))
    return np.asarray(decoder(*(jnp.asarray(array)[None] for array in (tokens, segments, positions))))[0]


def test_the_model_reads_a_joined_row_as_one_document_and_another_row_as_several() -> None:
    """Attention across documents is what these layouts are about, and a leak in all others."""
    documents = [(number, tokens) for number, tokens in random_documents(6, longest=12) if len(tokens)]
    size = sum(len(tokens) + 1 for _, tokens in documents)
    (joined,) = pack_joined(((*document, place > 0) for place, document in enumerate(documents)), size, E)
    (apart,) = pack(documents, size, E)
    whole = np.concatenate([[E, *tokens] for _, tokens in documents]).astype(np.int32)
    as_one = logits(whole, np.ones(size, np.int32), np.arange(size, dtype=np.int32))
    np.testing.assert_array_equal(logits(joined.tokens[:-1], joined.segments, joined.positions), as_one)
    separate = logits(apart.tokens[:-1], apart.segments, apart.positions)
    first = len(documents[0][1]) + 1
    np.testing.assert_allclose(separate[:first], as_one[:first], atol=1e-5)
    assert all(np.abs(separate[place] - as_one[place]).max() > 1e-3 for place in range(first, size))
