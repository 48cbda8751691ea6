"""What can be wrong before vLLM runs; `make test-vllm` has the tests with it."""

import sys
from pathlib import Path

import pytest
from etils import epath

from sbp_jax.config import MeshShape, Model
from sbp_jax.errors import SbpError
from sbp_jax.generation.requests import Request
from sbp_jax.generation.vllm import Vllm, _seed
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import initialize
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text.tokenizer import TextTokenizer

CONFIG = Model(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    huggingface.save(epath.Path(folder), initialize(CONFIG, 100, 0, build_mesh(MeshShape())), CONFIG, 100, 64, 0)
    return folder


def _vllm(folder: Path | str, python: str | None = sys.executable, tokens: int = 100) -> Vllm:
    tokenizer = TextTokenizer(tokens, 0, 1, None)  # type: ignore[arg-type]
    shape = {"context": 64, "slots": 4, "seed": 0, "dtype": "float32"}
    return Vllm(epath.Path(folder), tokenizer, python=python, name="weights", **shape)  # type: ignore[arg-type]


def test_an_environment_that_is_not_named(folder: Path) -> None:
    with pytest.raises(SbpError, match="set execution.vllm_python to its bin/python"):
        _vllm(folder, python=None)


@pytest.mark.parametrize("python", ["/nowhere/bin/python", "tests"])
def test_a_path_that_is_no_program(folder: Path, python: str) -> None:
    with pytest.raises(SbpError, match=f"execution.vllm_python is {python}, which is no program"):
        _vllm(folder, python=python)


def test_an_environment_without_vllm_is_shown_in_the_log(folder: Path) -> None:
    """Guards also against a worker that takes `vllm.py`, beside which it lies, for vLLM."""
    engine = _vllm(folder)
    with pytest.raises(SbpError, match=r"ended with status 1; the end of its log:(?s:.)*No module named 'vllm'"):
        list(engine.generate([]))


def test_a_tokenizer_that_is_not_the_models(folder: Path) -> None:
    with pytest.raises(SbpError, match="weights has 100 embeddings and the tokenizer 101 tokens"):
        _vllm(folder, tokens=101)


def test_a_folder_of_a_bucket() -> None:
    with pytest.raises(SbpError, match="vLLM reads models from local disks"):
        _vllm("/nowhere/model")


def test_seeds_are_functions_of_all_counters() -> None:
    """Guards against two samples of a document, or two documents, that are drawn alike."""
    requests = [Request(0, ordinal, sample, None, 1) for ordinal in (0, 1, 11, -1) for sample in (0, 1, 11)]  # type: ignore[arg-type]
    seeds = {_seed(seed, request) for seed in (0, 1) for request in requests}
    assert len(seeds) == 24 and all(0 <= seed < 2**63 for seed in seeds)
    assert _seed(0, requests[0]) == _seed(0, Request(5, 0, 0, None, 9))  # type: ignore[arg-type]
