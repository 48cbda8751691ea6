"""Two processes that search together write what one would: the exact search as one program, the others divided."""

import os
import socket
import subprocess
import sys

import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, find
from sbp_jax.config import Neighbors
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
from sbp_jax.stages import neighbors as stage
stage.QUERIES_PER_SHARD = 150
folder = epath.Path(sys.argv[1])
made = find(folder / "embed", Recipe("embed", 1, {}, {}).key)
for backend in ("exact", "bucketed"):
    output = Output(folder / backend, Recipe("neighbors", 1, {}, {}), backend, writes=hosts.is_first())
    stage.run(output, embeddings=made, neighbors=Neighbors(backend, top_k=5), execution=Execution())
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "QUERIES_PER_SHARD", 150)
    vectors = clustered(700)
    embeddings(tmp_path, vectors, name="embed")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for process in range(2):
        environment = os.environ | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
        environment |= {"JAX_PROCESS_ID": str(process), "XLA_FLAGS": f"{DEVICES}=4"}
        command = [sys.executable, "-c", SEARCH, str(tmp_path)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    for backend in ("exact", "bucketed"):
        alone = run(tmp_path, vectors, Neighbors(backend, top_k=5), f"alone-{backend}")
        together = find(epath.Path(tmp_path / backend), "")
        assert isinstance(together, Artifact) and together.stats == alone.stats
        assert [(file.name, file.checksum) for file in together.files] == [
            (file.name, file.checksum) for file in alone.files
        ]
