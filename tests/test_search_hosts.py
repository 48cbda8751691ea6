"""Two processes that search together write what one would: the exact search as one program, the others divided."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, find
from sbp_jax.config import Neighbors
from sbp_jax.parallel import machine
from sbp_jax.search import backends
from sbp_jax.stages import neighbors as stage
from tests.conftest import DEVICES
from tests.test_neighbors import clustered, embeddings, run

SEARCH = """
import sys
from sbp_jax.parallel import hosts
hosts.start()
import jax
from etils import epath
from sbp_jax.artifacts import Output, Recipe, find
from sbp_jax.config import Execution, Neighbors
from sbp_jax.search import backends
from sbp_jax.stages import neighbors as stage
stage.QUERIES_PER_SHARD = 150
backends.machine.memory, backends.SHARE = lambda: 1 << 20, 0.1
folder = epath.Path(sys.argv[1])
made = find(folder / "embed", Recipe("embed", 1, {}, {}).key)
for backend in sys.argv[2:]:
    output = Output(folder / backend, Recipe("neighbors", 1, {}, {}), backend, writes=hosts.is_first())
    stage.run(output, embeddings=made, neighbors=Neighbors(backend, top_k=5), execution=Execution())
"""


BACKENDS = ("exact", "bucketed", "scann")


@pytest.mark.slow
def test_two_processes_write_what_one_does(tmp_path, monkeypatch):
    """ScaNN in partitions, since memory is small; and a shard that was lost is made again by both."""
    pytest.importorskip("scann")
    monkeypatch.setattr(stage, "QUERIES_PER_SHARD", 150)
    monkeypatch.setattr(machine, "memory", lambda: 1 << 20)
    monkeypatch.setattr(backends, "SHARE", 0.1)
    vectors = clustered(700)
    embeddings(tmp_path, vectors, name="embed")
    together(tmp_path, *BACKENDS)
    alone = {backend: run(tmp_path, vectors, Neighbors(backend, top_k=5), f"alone-{backend}") for backend in BACKENDS}
    assert alone["scann"].stats["settings"]["partitions"] > 1
    for backend in BACKENDS:
        assert made(tmp_path, backend) == (alone[backend].stats, checksums(alone[backend]))
    for lost in (0, 1):
        (find(epath.Path(tmp_path / "bucketed"), "").path / f"part-{lost:05d}.parquet").unlink()
        together(tmp_path, "bucketed")
        assert made(tmp_path, "bucketed") == (alone["bucketed"].stats, checksums(alone["bucketed"]))


def together(folder: Path, *backends: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for process in range(2):
        environment = os.environ | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
        environment |= {"JAX_PROCESS_ID": str(process), "XLA_FLAGS": f"{DEVICES}=4"}
        command = [sys.executable, "-c", SEARCH, str(folder), *backends]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors


def made(folder: Path, backend: str) -> tuple[dict, list[tuple[str, str]]]:
    artifact = find(epath.Path(folder / backend), "")
    assert isinstance(artifact, Artifact)
    return artifact.stats, checksums(artifact)


def checksums(artifact: Artifact) -> list[tuple[str, str]]:
    return [(file.name, file.checksum) for file in artifact.files]
