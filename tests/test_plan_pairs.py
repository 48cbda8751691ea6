"""Plans for finding pairs, beside what is really chosen, compiled, joined and written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from docs import pair_plan_tables
from sbp_jax import cli
from sbp_jax.artifacts import parquet
from sbp_jax.config import MeshShape, Neighbors
from sbp_jax.errors import SbpError
from sbp_jax.experiments import load
from sbp_jax.model import encoder
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.pipeline import Pipeline
from sbp_jax.planning import pairs, pairs_report
from sbp_jax.planning.pairs import Corpus, Machines, cpu_machines, plan, slice_machines, written
from sbp_jax.planning.topology import GIB
from sbp_jax.search import backends, bucketed, exact, kmeans

CONFIG = "configs/quickstart.py"
SMALL = Corpus(documents=16 * 1024, width=256, top_k=20, tokens=128, words=200, kept=1.0)
CPU = cpu_machines(1, 64 * GIB, 2)


def _flops(program: Any, *shapes: Any) -> float:
    """Operations that the compiler counts; those of a loop it counts once."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return program.lower(*arguments).compile().cost_analysis()["flops"]


def test_operations_of_the_exact_search_are_those_of_the_compiled_program() -> None:
    """One block and as many queries as are scored again at a time, so that no loop counts once that runs often."""
    n, queries, width, kept = exact.BLOCK, exact.RESCORED, SMALL.width, SMALL.top_k + 1 + exact.SPARE
    program = exact.best_program(build_mesh(MeshShape(), jax.devices()[:1]), kept, False)
    shapes = *(((n, width), jnp.float32),) * 2, ((queries, width), jnp.float32), ((), jnp.int32)
    planned = pairs.SEARCHES["exact"](replace(SMALL, documents=n), CPU)["flops"]
    assert _flops(program, *shapes) == pytest.approx(planned * queries / n, rel=0.05)


def test_operations_of_the_bucketed_search_are_those_of_its_programs() -> None:
    """Assigning by the compiler's count, joining by the buckets of clustered vectors as they are padded."""
    n, width = 6000, 32
    chosen = bucketed.settings(n, width, Neighbors(top_k=SMALL.top_k))
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    shapes = ((512, width), jnp.float32), ((chosen.buckets, width), jnp.float32)
    assigned = _flops(kmeans._nearest(mesh, chosen.spill), *shapes) * n / 512
    random = np.random.default_rng(0)
    vectors_ND = random.normal(size=(60, width))[random.integers(0, 60, n)] + 0.7 * random.normal(size=(n, width))
    vectors_ND = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)
    centroids_CD = kmeans.train(vectors_ND[:: max(n // chosen.sample, 1)], chosen.buckets, mesh)
    sizes = np.bincount(kmeans.Assign(centroids_CD, chosen.spill, mesh)(vectors_ND).ravel())
    joined = sum(2 * bucketed._size(int(size)) * int(size) * width for size in sizes if size > 1)
    trained = 2 * kmeans.ROUNDS * chosen.sample * chosen.buckets * width
    planned = pairs.SEARCHES["bucketed"](replace(SMALL, documents=n, width=width), CPU)["flops"]
    assert trained + assigned + joined == pytest.approx(planned, rel=0.35)


def test_operations_and_parameters_of_the_embedders() -> None:
    """Guards MiniLM's numbers by the compiler's count of one of its six layers, which are a loop, and by its arrays.

    Those leave out the two vectors that tell sentences apart. Qwen3-Embedding has what its model card says.
    """
    module = encoder.load(encoder.find(encoder.PACKAGED), "float32")
    graph, weights = nnx.split(module)
    program = jax.jit(lambda weights, tokens, lengths: nnx.merge(graph, weights)(tokens, lengths))
    texts, tokens = 4, 128
    lengths = jnp.full((texts,), tokens)
    counted = program.lower(weights, jnp.zeros((texts, tokens), jnp.int32), lengths).compile().cost_analysis()["flops"]
    planned = pairs.embedder_flops("all-minilm-l6-v2", tokens) * texts * tokens / module.config.layers
    assert counted == pytest.approx(planned, rel=0.1)
    held = sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert pairs.embedder_parameters("all-minilm-l6-v2") == held + 2 * module.config.width
    assert pairs.embedder_parameters("qwen3-embedding-0.6b") == pytest.approx(595_776_512, rel=1e-4)  # padded
    assert pairs.embedder_parameters("none") == pairs.embedder_flops("none", 128) == 0


@pytest.mark.parametrize("documents", [2, 4095, 4096, 10**6, 10**8])
def test_the_plan_chooses_what_the_stage_would(documents: int) -> None:
    """Guards against two rules: here the devices are CPUs, as those of the plan."""
    stage = backends.choose(documents, 256, Neighbors(), jax.device_count(), 64 * GIB)
    made = plan(replace(SMALL, documents=documents), CPU, None, 0.4)
    assert (made["backend"], made["reason"]) == (stage.backend, stage.reason)


def test_a_slice_searches_exactly_while_that_is_soon_done() -> None:
    sizes = (60_000_000, 582_000_000)
    made = [plan(Corpus(n, 1024, 20, 256, 400, 1.0), slice_machines("v5p:4x4x8", None), None, 0.4) for n in sizes]
    assert [entry["backend"] for entry in made] == ["exact", "bucketed"]
    assert [entry["machines"]["hosts"] for entry in made] == [32, 32]
    near, far = (entry["searches"]["exact"] for entry in made)
    assert far["seconds"] / near["seconds"] == pytest.approx((582 / 60) ** 2, rel=0.01)
    assert near["device_bytes"] == pytest.approx((4 + 2) * 1024 * 60e6 / 128, rel=0.05)
    assert near["chip_hours"] == pytest.approx(near["seconds"] * 128 / 3600)
    assert made[0]["embedding"]["embedder"] == "qwen3-embedding-0.6b"
    assert slice_machines("tpu7x:4x4x4", None).devices == 128


def test_scann_is_cut_to_the_memory_of_a_host() -> None:
    corpus = replace(SMALL, documents=50_000_000, width=384)
    parts = []
    for memory in (64, 256):
        made = pairs.SEARCHES["scann"](corpus, cpu_machines(4, memory * GIB, 16))
        assert made["host_bytes"] < memory * GIB
        parts.append(made["settings"]["partitions"])
    assert parts[0] > parts[1] > 1


@pytest.mark.slow
def test_bytes_are_those_of_a_real_run(tmp_path: Path) -> None:
    """From the corpus to the pairs, with vectors of clusters instead of a model's; docs/planning.md says how near."""
    experiment = load(CONFIG, ["neighbors.top_k=20", "pairs.threshold=0.4"])
    pipeline = Pipeline(experiment, str(tmp_path / "work"))
    pipeline.run(lambda line: None, until="ingest")
    documents = pipeline.artifact("documents")
    assert documents is not None
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 384))[random.integers(0, 300, documents.rows)]
    vectors += 0.9 * random.normal(size=vectors.shape)
    np.save(tmp_path / "vectors.npy", vectors.astype(np.float32))
    experiment = replace(experiment, embedding=replace(experiment.embedding, vectors=str(tmp_path / "vectors.npy")))
    pipeline = Pipeline(experiment, str(tmp_path / "work"))
    pipeline.run(lambda line: None, until="pairs")
    made = {name: pipeline.artifact(name) for name in ("embeddings", "neighbors", "screened", "pairs")}
    embeddings, neighbors, screened, kept = (artifact for artifact in made.values() if artifact is not None)
    words = np.mean(parquet.read(screened, ["words"])["words"].to_numpy())
    corpus = Corpus(embeddings.rows, 384, 20, 256, round(words), kept.rows / neighbors.rows)
    for name, artifact in made.items():
        assert artifact is not None
        size = sum(file.bytes for file in artifact.files)
        assert 0.65 * written(corpus)[name] < size < 1.1 * written(corpus)[name], (name, size, written(corpus)[name])


def _printed(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    status = cli.main(["plan", "pairs", *options])
    return status, *capsys.readouterr()


def test_the_command_speaks_to_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--documents", "60e6", "--width", "1024", "--topology", "v5p:4x4x8")
    status, out, _ = _printed(capsys, *asked)
    assert status == 0 and "exact: about 1,152 s" in out and "chip-hours" in out
    assert max(map(len, out.splitlines())) <= 100
    status, out, _ = _printed(capsys, *asked, "--json")
    made = json.loads(out)
    assert status == 0 and made["corpus"]["documents"] == 60_000_000
    assert pairs_report.text(made) == _printed(capsys, *asked)[1].rstrip("\n")
    status, out, _ = _printed(capsys, "--documents", "1e6", "--width", "384", "--hosts", "4")
    assert status == 0 and "all-minilm-l6-v2" in out and "4 hosts of 8 cores and 64 GiB" in out


REFUSED = {
    "--documents 1 --width 8": "--documents is 1; it must be at least 2",
    "--documents 9 --width 8 --kept 0": "--kept is 0; it is a fraction",
    "--documents 9 --width 8 --topology v5p:4x4": "--topology v5p:4x4: expected a kind of chip",
    "--documents 9 --width 512 --embedder all-minilm-l6-v2": "gives vectors of 384 numbers, not of 512",
    "--documents 9 --width 8 --embedder bert": "the plan knows all-minilm-l6-v2, qwen3-embedding-0.6b, none",
    "--documents 9 --width 8 --host-memory 0": "--host-memory is 0; it must be above 0",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], options: str) -> None:
    status, _, err = _printed(capsys, *options.split())
    assert status == 2 and REFUSED[options] in err


def test_a_vector_wider_than_any_embedder_is_the_users_own() -> None:
    made = plan(replace(SMALL, width=4096), CPU, None, 0.4)
    assert made["embedding"]["embedder"] == "none" and made["embedding"]["seconds"] == 0
    with pytest.raises(SbpError, match="gives vectors of 1024"):
        plan(replace(SMALL, width=4096), CPU, "qwen3-embedding-0.6b", 0.4)


def test_the_tables_of_the_page_are_those_of_the_planner() -> None:
    """Guards against a page that tells what an older planner said."""
    page = pair_plan_tables.PAGE.read_text()
    for line in pair_plan_tables.rows():
        assert line in page, line


def test_cores_make_a_host_as_fast_as_they_are_together() -> None:
    assert CPU == Machines("1 host of 2 cores and 64 GiB", "cpu", 1, 1, 0, 0, 2 * pairs.CORE_FLOPS, 64 * GIB)
