"""Models behind lm-eval's interface: the same scores as texts that are read one by one, cut where the harness cuts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from sbp_jax.config import Execution, MeshShape
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import Parameters, bind
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.tasks import harness
from sbp_jax.tasks.branches import BRANCHES, batches
from sbp_jax.tasks.likelihood import Likelihood
from tests.planted_model import END, MODEL, plant

harness.prepare()

from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

from sbp_jax.tasks.lm import DecoderLM  # noqa: E402

CONTEXT = 160
MESH = MeshShape(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return plant(tmp_path_factory.mktemp("planted"), CONTEXT)


@pytest.fixture(scope="module")
def lm(folder) -> DecoderLM:
    one_copy = MeshShape(data=1, fsdp=4, tensor=2)  # of the engine too, which each copy compiles for itself
    return DecoderLM(str(folder), Execution(mesh=one_copy))


@pytest.fixture(scope="module")
def vocabulary(folder) -> int:
    return huggingface.inspect(epath.Path(folder)).vocabulary


@pytest.fixture(scope="module")
def parameters(folder, vocabulary) -> Parameters:
    return huggingface.load(epath.Path(folder), MODEL, vocabulary, build_mesh(MESH))


class Alone:
    """The decoder on one text at a time, padded to one length so that it is compiled once."""

    def __init__(self, parameters: Parameters, vocabulary: int):
        def logprobs(tokens: jax.Array) -> jax.Array:
            decoder = bind(MODEL, vocabulary, parameters)
            logits = decoder(tokens, jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None])
            return jax.nn.log_softmax(logits[0, :, :vocabulary])

        self._logprobs = jax.jit(logprobs)

    def next(self, read: Sequence[int]) -> np.ndarray:
        """Log probabilities after each position."""
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(read)] = read
        return np.asarray(self._logprobs(padded))[: len(read)]

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        read = [*context, *continuation][-(CONTEXT + 1) :]
        logprobs = self.next(read[:-1])[-len(continuation) :]
        chosen = logprobs[np.arange(len(continuation)), continuation]
        return float(chosen.sum(dtype=np.float64)), bool((logprobs.argmax(-1) == continuation).all())

    def write(self, prompt: list[int], count: int) -> list[int]:
        for _ in range(count):
            prompt = [*prompt, int(self.next(prompt)[-1].argmax())]
        return prompt[-count:]


@pytest.fixture(scope="module")
def alone(parameters, vocabulary) -> Alone:
    return Alone(parameters, vocabulary)


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def some_requests(alone: Alone, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Shared and lone contexts, answers of one token and of many, greedy ones, and contexts that have to be cut."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return random.integers(0, vocabulary, count).tolist()

    requests = []
    for length in (1, 3, 40, 90, 150, 160, 161, 400):
        context = tokens(length)
        requests += [(context, tokens(size)) for size in (1, 1, 2, 7, 30)]
        if length < 100:
            requests.append((context, alone.write(context, 4)))
    many = tokens(20)  # its answers fill more than one row
    requests += [(many, tokens(9)) for _ in range(40)]
    requests.append((many, requests[-1][1]))  # asked twice
    requests.append((tokens(5), tokens(160)))
    return requests


def test_a_row_holds_every_request_whole_and_each_target_once(alone, vocabulary):
    """Guards packing: a token lost, a target of another request, a branch that continues another."""
    requests = [
        (tuple(context[-60:]), tuple(continuation[:60])) for context, continuation in some_requests(alone, vocabulary)
    ]
    found: dict[int, list[tuple[list[int], int]]] = {}
    for batch in batches(requests, 128, 512, 4):
        assert len(batch.tokens) % 4 == 0
        for row, slot in zip(*np.nonzero(batch.owners >= 0), strict=True):
            place, branches = batch.places[row, slot], batch.branches[row]
            own = branches[place]
            seen = (branches == own) | (branches == own // BRANCHES * BRANCHES)
            seen[place + 1 :] = False
            assert batch.positions[row][seen].tolist() == list(range(seen.sum())), "places in the text, not in the row"
            read = batch.tokens[row][seen].tolist()
            found.setdefault(int(batch.owners[row, slot]), []).append((read, int(batch.targets[row, slot])))
    assert sorted(found) == list(range(len(requests)))
    for index, (context, continuation) in enumerate(requests):
        wanted = [([*context, *continuation[:number]], target) for number, target in enumerate(continuation)]
        assert sorted(found[index], key=lambda pair: len(pair[0])) == wanted


def test_answers_that_share_a_context_score_as_each_read_alone(parameters, vocabulary, alone):
    """Guards the mask, the positions, and where a context is cut; on eight devices, cut three ways."""
    requests = some_requests(alone, vocabulary)
    likelihood = Likelihood(MODEL, vocabulary, parameters, build_mesh(MESH), CONTEXT)
    scores, greedy = likelihood(requests)
    wanted = [alone.score(*request) for request in requests]
    np.testing.assert_allclose(scores, [score for score, _ in wanted], atol=1e-3, rtol=1e-5)
    assert greedy.tolist() == [best for _, best in wanted]
    assert 4 <= greedy.sum() < len(requests) - 4, "nothing was told apart"
    assert likelihood.cut == sum(len(context) + len(continuation) > CONTEXT + 1 for context, continuation in requests)


def test_a_continuation_longer_than_the_model_reads_is_refused(parameters, vocabulary):
    likelihood = Likelihood(MODEL, vocabulary, parameters, build_mesh(MESH), CONTEXT)
    with pytest.raises(SbpError, match="161 tokens, and the model reads 160"):
        likelihood([([1], [1] * 161)])


PAIRS = [
    ("Question: Which metal is it?\nAnswer:", " gold"),
    ("Question: Which metal is it?\nAnswer: ", "gold"),
    ("the dog sleeps  \n ", "on."),
    ("", "Gold is"),
    ("", f"{END}Gold is"),
    (f"{END}Gold", " is"),
    (f"{END}Gold", " is a"),
    ("café 東", "京."),
]


def test_contexts_end_and_continuations_begin_where_the_harness_has_it(lm, monkeypatch):
    """Guards against a boundary inside a token, a lost space, or a prefix counted twice."""
    given: list[Any] = []

    def note(requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
        given.append(requests)
        return [(0.0, False)] * len(requests)

    monkeypatch.setattr(lm, "_loglikelihood_tokens", note)
    requests = [asked(*pair) for pair in PAIRS]
    lm.loglikelihood(requests)
    TemplateLM.loglikelihood(lm, requests, disable_tqdm=True)
    assert given[0] == given[1]
    assert given[0][3][1] == [lm.prefix_token_id] and given[0][4][1] == [lm.prefix_token_id]
    with pytest.raises(SbpError, match="has no token to be scored"):
        lm.loglikelihood([asked("Gold", "")])


def test_a_long_text_is_scored_in_windows_each_token_once(lm, alone):
    texts = ["Gold is a chemical element. " * 40, "", "the dog", END + "the dog"]
    totals = lm.loglikelihood_rolling([asked(text) for text in texts])
    for text, total in zip(texts, totals, strict=True):
        tokens = lm.tok_encode(text)
        windows = map(make_disjoint_window, get_rolling_token_windows(tokens, lm.prefix_token_id, CONTEXT, 1))
        assert total == pytest.approx(sum(alone.score(*window)[0] for window in windows), abs=2e-3, rel=1e-5)
    assert len(lm.tok_encode(texts[0])) > 2 * CONTEXT and totals[1] == 0


def test_greedy_answers_are_those_of_naive_decoding_up_to_the_stop(lm, alone):
    """Guards stops that are seen late or not at all, prompts cut at the wrong end, and circles ended too early."""
    prompts = ["Gold is", "Question: Which metal is it?\nAnswer:", "the lazy dog " * 40, ""]
    cases = [(prompt, stop) for prompt in prompts for stop in (["e"], ["zzz"], [])]
    answers = lm.generate_until([asked(prompt, {"until": stop, "max_gen_toks": 40}) for prompt, stop in cases])
    for (prompt, stop), answer in zip(cases, answers, strict=True):
        read = lm.tok_encode(prompt)[-(CONTEXT - 40) :] or [lm.prefix_token_id]
        written = alone.write(read, 40)
        written = written[: written.index(lm.eot_token_id)] if lm.eot_token_id in written else written
        whole = lm.tok_decode(written)
        assert answer == (whole.split(stop[0])[0] if stop else whole)
    assert lm.cut > 0


def test_sampled_answers_differ_and_come_again(lm):
    settings = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    requests = [asked("Gold is", settings)] * 3  # `repeats` of the harness
    first = lm.generate_until(requests)
    assert len(set(first)) == 3 and lm.generate_until(requests) == first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"until": [], "num_beams": 4}, "num_beams=4"),
        ({"until": [], "max_gen_toks": 160}, "160 tokens are to be written, and the model reads 160"),
    ],
)
def test_what_cannot_be_generated_is_said(lm, settings, said):
    with pytest.raises(SbpError, match=said):
        lm.generate_until([asked("Gold", settings)])


def test_a_stopped_slot_is_free_again(lm):
    """Guards slots that go on writing for a request that has enough: more requests than slots end all the same."""
    small = DecoderLM(str(lm._folder), replace(lm._execution, slots=2, decode_steps=2))
    settings = {"until": ["e", "a", " "], "max_gen_toks": 60, "num_beams": 1}  # which is no beam search
    requests = [asked(f"Gold {number}", settings) for number in range(7)]
    assert small.generate_until(requests) == lm.generate_until(requests)
