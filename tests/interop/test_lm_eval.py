"""Scores of tasks are those of lm-eval's own Hugging Face backend on the same folder, request by request."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbp_jax.config import Execution, MeshShape
from sbp_jax.tasks import answers, harness
from sbp_jax.tasks.local import Asked
from tests.planted_model import TEXTS, plant

harness.prepare()

from lm_eval.models.huggingface import HFLM  # noqa: E402

from sbp_jax.tasks.lm import DecoderLM  # noqa: E402

CONTEXT = 640  # more than 256 tokens to write and a prompt, as the other backend wants it
ITEMS = 6
WORDS = " ".join(TEXTS).split()


def words(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def records(task: str, draw: random.Random) -> dict[str, Any]:
    choices = [words(draw, 1, 5) for _ in range(4)]
    question = {"question": words(draw, 3, 30) + "?", "passage": words(draw, 20, 60)}
    return {
        "lambada_openai": {"text": words(draw, 20, 60)},
        "arc_easy": {"query": f"Question: {question['question']}", "choices": choices[: draw.randint(2, 4)], "gold": 1},
        "winogrande": {"sentence": f"{words(draw, 3, 9)} _ {words(draw, 2, 6)}", "option1": "gold",
                       "option2": "the dog", "answer": "2"},
        "mmlu_anatomy": question | {"choices": choices, "answer": 3, "subject": "anatomy"},
        "webqs": question | {"answers": choices},
        "boolq": question | {"label": draw.randint(0, 1), "idx": 0},
        "wikitext": {"page": "\n\n".join(words(draw, 30, 300) for _ in range(draw.randint(1, 6)))},
        "triviaqa": question | {"answer": {"value": "gold", "aliases": ["gold", "Au"]}},
        "gsm8k": question | {"answer": f"{words(draw, 2, 9)}\n#### {draw.randint(1, 9)}"},
    }[task]  # fmt: skip


TASKS = [
    *("lambada_openai", "arc_easy", "winogrande", "mmlu_anatomy", "webqs", "boolq", "wikitext", "triviaqa", "gsm8k"),
]


@pytest.fixture(scope="module")
def backends(tmp_path_factory) -> tuple[DecoderLM, HFLM]:
    folder = str(plant(tmp_path_factory.mktemp("planted"), CONTEXT))
    ours = DecoderLM(folder, Execution(mesh=MeshShape(data=1, fsdp=4, tensor=2)))
    return ours, HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for task in TASKS:
        lines = [json.dumps(records(task, draw)) for _ in range(ITEMS)]
        (folder / f"{task}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_every_request_has_the_answer_of_the_harness_s_own_backend(backends, data, task):
    """Log-likelihoods to 1e-4 (of 1 nat, or of the value where it is greater), greedy flags, texts, and the metrics."""
    fewshot = None if task == "webqs" else 2  # which the harness cannot: its answers are several
    found = [harness.ask(backend, Asked(task, fewshot=fewshot, data=str(data))) for backend in backends]
    ours, theirs = (one["samples"][task] for one in found)
    assert len(ours) == len(theirs) >= ITEMS
    told = 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["arguments"] == other["arguments"]
        for answer, wanted in zip(mine["resps"], other["resps"], strict=True):
            if isinstance(wanted[0], str):
                assert answer == wanted
                told += len(wanted[0])
            elif isinstance(wanted[0], tuple):
                assert answer[0][0] == pytest.approx(wanted[0][0], abs=1e-4, rel=1e-5)
                assert answer[0][1] == wanted[0][1]
                told += wanted[0][0] < -0.1
            else:
                assert answer[0] == pytest.approx(wanted[0], abs=1e-4, rel=1e-5)
                told += wanted[0] < -0.1
    assert told >= ITEMS, "answers that agree because there is nothing in them"
    values = [[metric["value"] for one in answers.results(each, task, 0, None)["tasks"] for metric in one["metrics"]]
              for each in found]  # fmt: skip
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)


def test_both_backends_begin_and_end_texts_with_the_same_tokens(backends):
    ours, theirs = backends
    assert (ours.eot_token_id, ours.prefix_token_id) == (theirs.eot_token_id, theirs.prefix_token_id)
    assert (ours.max_length, ours.max_gen_toks) == (theirs.max_length, theirs.max_gen_toks)
    for text in ("Gold is", "", "<|endoftext|>Gold", " two  spaces\n", "東京"):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
