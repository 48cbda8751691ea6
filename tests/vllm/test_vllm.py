"""vLLM beside the JAX engine: the same requests, the same texts; and what happens when it fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy.stats import chisquare

from sbp_jax.config import MeshShape, Model
from sbp_jax.errors import SbpError
from sbp_jax.generation.engine import Engine
from sbp_jax.generation.requests import Completion, Request, Sampling
from sbp_jax.generation.vllm import Vllm
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import Parameters, bind, initialize
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text.tokenizer import TextTokenizer

PYTHON = os.environ["SBP_VLLM_PYTHON"]
CONFIG = Model(width=64, layers=3, heads=4, kv_heads=2, head_dim=32, ffn=128)
TOKENS, ROWS = 300, 320  # of the tokenizer, and of the table in the file: the others are never chosen
END, SEPARATOR = 0, 1
TOKENIZER = TextTokenizer(TOKENS, END, SEPARATOR, None)  # type: ignore[arg-type]  # the engines need no text
CONTEXT, SLOTS, NEW = 320, 16, 120
ROUNDING = 1e-4  # of logits, which reach 4 here: measured 4e-6
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    """Random weights, larger than at initialization so that the two best logits are far apart, and texts end."""
    drawn = jax.device_get(initialize(CONFIG, ROWS, 0, build_mesh(MeshShape())))
    scaled: Parameters = jax.tree.map(lambda array: array if np.all(array == 1) else array * 6, drawn)
    return scaled


@pytest.fixture(scope="module")
def folder(parameters: Parameters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(parameters, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Vllm]:
    started = _vllm(folder)
    yield started
    started.close()


def _saved(parameters: Parameters, folder: Path) -> Path:
    huggingface.save(epath.Path(folder), parameters, CONFIG, ROWS, CONTEXT, END)
    return folder


def _vllm(folder: Path, slots: int = SLOTS) -> Vllm:
    shape = {"context": CONTEXT, "slots": slots, "seed": 7, "dtype": "float32"}
    return Vllm(epath.Path(folder), TOKENIZER, python=PYTHON, name="weights", **shape)  # type: ignore[arg-type]


def _prompt(length: int, seed: int) -> np.ndarray:
    middle = np.random.default_rng(seed).integers(2, TOKENS, length - 2)
    return np.concatenate([[END], middle, [SEPARATOR]]).astype(np.int32)


def _requests(count: int, sampling: Sampling) -> list[Request]:
    lengths = [2, 127, 128, 129, 200, *np.random.default_rng(0).integers(3, 160, count)][:count]
    return [
        Request(number, 2**33 + number // 2, number % 2, _prompt(length, number), NEW, sampling)
        for number, length in enumerate(lengths)
    ]


def _by_number(completions: Iterator[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: completion.request.number)


def _ours(parameters: Parameters, requests: list[Request]) -> list[Completion]:
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    shape = {"context": CONTEXT, "mesh": mesh, "slots": SLOTS, "decode_steps": 8, "seed": 7}
    made = Engine(CONFIG, parameters, TOKENIZER, name="weights", **shape)  # type: ignore[arg-type]
    return _by_number(made.generate(requests))


@jax.jit
def _forward(parameters: Parameters, tokens: jax.Array) -> jax.Array:
    positions = jnp.arange(CONTEXT)[None]
    return bind(CONFIG, ROWS, parameters)(tokens[None], jnp.ones_like(positions), positions)[0]


def _logits(parameters: Parameters, sequence: np.ndarray) -> np.ndarray:
    """Those of a full forward pass, of tokens that may be chosen: float32 [positions, TOKENS]."""
    logits = _forward(parameters, np.pad(sequence, (0, CONTEXT - len(sequence))))
    allowed = np.array(logits[: len(sequence), :TOKENS])
    allowed[:, SEPARATOR] = -np.inf
    return allowed


def test_greedy_texts_are_those_of_the_jax_engine(parameters: Parameters, engine: Vllm) -> None:
    """Guards prompts, positions, rotary angles, norms, banned tokens, the end of a text, its limit and its loops."""
    requests = _requests(40, GREEDY)
    compared, finishes = 0, set()
    for theirs, ours in zip(_by_number(engine.generate(requests)), _ours(parameters, requests), strict=True):
        request, shared = theirs.request, min(len(theirs.tokens), len(ours.tokens))
        sequence = np.concatenate([request.prompt, theirs.tokens])
        logits = _logits(parameters, sequence)[len(request.prompt) - 1 :]
        differing = np.flatnonzero(theirs.tokens[:shared] != ours.tokens[:shared])
        if len(differing) or len(theirs.tokens) != len(ours.tokens):
            first = int(differing[0]) if len(differing) else shared
            best = np.sort(logits[first])[-2:]
            assert best[1] - best[0] < ROUNDING, f"request {request.number} differs at token {first}"
            compared += first
            continue
        compared += shared
        assert theirs.finish == ours.finish
        np.testing.assert_allclose(theirs.logprob, ours.logprob, atol=ROUNDING * (shared + 1))
        finishes.add(theirs.finish)
        chosen = np.append(theirs.tokens, END) if theirs.finish == "end" else theirs.tokens
        logprobs = np.asarray(jax.nn.log_softmax(logits[: len(chosen)]))[np.arange(len(chosen)), chosen]
        np.testing.assert_allclose(theirs.logprob, logprobs.sum(), atol=ROUNDING * len(chosen))
    assert finishes == {"end", "length", "loop"}
    assert compared > 1500


def test_sampled_texts_are_the_same_in_a_second_run(engine: Vllm, folder: Path) -> None:
    """Guards the seeds: of the request, not of the run, and another for each sample."""
    requests = _requests(30, Sampling(temperature=0.8, top_p=0.95, top_k=40))
    first = _by_number(engine.generate(requests))
    again = _vllm(folder)
    second = _by_number(again.generate(iter(requests)))
    again.close()
    assert [one.request.number for one in first] == list(range(30))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert (one.finish, one.logprob) == (other.finish, other.logprob)
        assert one.tokens.dtype == np.int32 and len(one.tokens) <= NEW and one.logprob < 0
        assert one.finish in ("end", "length", "loop")
        assert not np.isin(one.tokens, [END, SEPARATOR]).any() and one.tokens.max() < TOKENS
    twins = [Request(n, 5, n, _prompt(20, 0), 30, Sampling()) for n in range(8)]
    assert len({tuple(one.tokens) for one in engine.generate(twins)}) == 8


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.6), Sampling(top_k=6), Sampling(temperature=3 / 2, top_p=0.7)]
)
def test_first_tokens_have_the_frequencies_of_the_softmax(
    parameters: Parameters, engine: Vllm, sampling: Sampling
) -> None:
    count, prompt = 3000, _prompt(6, 3)
    requests = [Request(n, 9, n, prompt, 1, sampling) for n in range(count)]
    drawn = [int(np.append(one.tokens, END)[0]) for one in engine.generate(requests)]
    logits = _logits(parameters, prompt)[-1].astype(np.float64)
    plain = np.exp(logits - logits.max())
    probabilities = plain ** (1 / sampling.temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    kept = order[: sampling.top_k or None]
    before = np.cumsum(probabilities[kept]) - probabilities[kept]
    kept = kept[before < sampling.top_p * probabilities[kept].sum()]
    assert set(drawn) <= set(kept.tolist())
    expected = count * probabilities[kept] / probabilities[kept].sum()
    observed = np.bincount(drawn, minlength=TOKENS)[kept]
    common = expected >= 5
    assert common.sum() > 3, "a distribution that says little"
    bins = [np.append(values[common], values[~common].sum()) for values in (observed, expected)]
    keep = bins[1] > 0
    assert chisquare(bins[0][keep], bins[1][keep]).pvalue > 1e-3


def test_a_killed_worker_is_an_error_and_the_next_requests_start_another(engine: Vllm) -> None:
    texts = engine.generate(_requests(40, GREEDY))
    next(texts)
    assert engine._worker is not None
    os.kill(engine._worker._process.pid, signal.SIGKILL)
    with pytest.raises(SbpError, match=r"vLLM, run by .*, was killed; if memory was short, lower execution.slots"):
        list(texts)
    assert len(list(engine.generate(_requests(3, GREEDY)))) == 3


def test_given_up_requests_are_not_taken_for_later_ones(engine: Vllm) -> None:
    texts = engine.generate(_requests(40, GREEDY))
    next(texts)
    texts.close()
    wanted = [Request(n, n, 0, _prompt(10, n), 5, GREEDY) for n in range(4)]
    assert [len(one.tokens) <= 5 for one in _by_number(engine.generate(wanted))] == [True] * 4


def test_what_vllm_refuses_is_an_error_that_says_why(engine: Vllm) -> None:
    hot = Request(0, 3, 1, _prompt(10, 0), 5, Sampling(temperature=2.5))
    with pytest.raises(SbpError, match="refuses the request of seed document 3, sample 1: temperature must be in"):
        list(engine.generate([hot]))


def test_weights_that_give_no_numbers_are_an_error_that_names_them(parameters: Parameters, tmp_path: Path) -> None:
    broken = _vllm(_saved(parameters | {"final_norm": np.full_like(parameters["final_norm"], np.nan)}, tmp_path))
    with pytest.raises(SbpError, match="weights gives logits that are no finite numbers for seed document"):
        list(broken.generate(_requests(3, GREEDY)))
    broken.close()


@pytest.mark.parametrize("busy", [True, False])
def test_a_killed_parent_leaves_no_worker(folder: Path, busy: bool) -> None:
    """Guards against orphans that hold an accelerator's memory, be it at work or waiting for requests."""
    program = f"""
import time
from tests.vllm.test_vllm import _vllm, _requests, GREEDY
engine = _vllm({str(folder)!r})
texts = engine.generate(_requests(16, GREEDY) * {1000 if busy else 1})
next(texts) if {busy} else list(texts)
print(engine._worker._process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    for _ in range(150):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by 15 seconds")
