"""The same on a Ray cluster of two nodes, of which one is lost in the middle."""

import os
import threading
from functools import partial
from pathlib import Path

import pytest

from sbp_jax.config import Execution
from sbp_jax.errors import SbpError
from sbp_jax.parallel.executor import carry_out
from tests.executor_tasks import ITEMS, fails, refuses, slowly
from tests.test_executor import corpus, made, until

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or tasks stand still on a machine that is busy
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield found
    found.shutdown()


def on(cluster, **settings) -> Execution:
    return Execution(executor="ray", ray_address=cluster.address, **settings)


def lose_a_node(cluster, node, when) -> threading.Thread:
    def lose() -> None:
        until(when)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    return thread


def test_failures_are_told_as_elsewhere(cluster, tmp_path):
    found = carry_out(on(cluster), "tokens", partial(fails, str(tmp_path), 1), ITEMS)
    assert sorted(found) == [item.upper() for item in ITEMS]
    with pytest.raises(SbpError, match="^part-3 is damaged; copy it again$"):
        list(carry_out(on(cluster), "tokens", refuses, ITEMS))


def test_a_lost_node_loses_no_task(cluster, tmp_path):
    second = cluster.add_node(num_cpus=1)
    thread = lose_a_node(cluster, second, lambda: len(list(tmp_path.iterdir())) > 4)
    found = carry_out(on(cluster), "tokens", partial(slowly, str(tmp_path)), ITEMS)
    assert sorted(found) == [item.upper() for item in ITEMS]
    thread.join()


def test_the_bytes_are_those_of_one_process_though_a_node_is_lost(cluster, tmp_path):
    experiment = corpus(tmp_path)
    alone = made(experiment, tmp_path / "alone", Execution(workers=1))
    second = cluster.add_node(num_cpus=1)
    workdir: Path = tmp_path / "ray"
    thread = lose_a_node(cluster, second, lambda: any(workdir.glob("artifacts/tokens/*/.done/*")))
    assert made(experiment, workdir, on(cluster)) == alone
    thread.join()


def test_no_cluster_says_so():
    with pytest.raises(SbpError, match="no Ray cluster answers at 127.0.0.1:1"):
        list(carry_out(Execution(executor="ray", ray_address="127.0.0.1:1"), "tokens", refuses, ITEMS))
