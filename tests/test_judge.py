"""The judge against a real server that speaks the protocol, with the faults that real ones have."""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, Judge, Quality
from sbp_jax.errors import SbpError
from sbp_jax.experiments import load
from sbp_jax.overrides import override
from sbp_jax.pipeline import Pipeline
from sbp_jax.quality import endpoint, questions
from sbp_jax.stages import judge as stage
from tests.quality_inputs import inputs, text

REAL = [(text(number), "capped") for number in range(12)] + [(text(30), "validation"), (text(31), "test")]
PAIRS = [(number, (number + 1) % 12) for number in range(12)]
MADE = [
    {"text": f"{text(100 + n)} {{document}} {'FALSE' if n % 3 == 0 else 'TRUE'}", "read": [n % 12]} for n in range(12)
]
Reply = tuple[int, dict[str, str], bytes]  # status, headers, body


def _completion(content: str | None) -> Reply:
    told = {"model": "the-model-itself", "choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    return 200, {}, json.dumps(told).encode()


def _truth(prompt: str) -> str:
    """Calls a document false that says so of itself, and every pair related."""
    if "<first>" in prompt:
        return "They share a word.\n\nRELATED"
    return (
        "I looked.\n**NONFACTUAL**"
        if "FALSE" in prompt.split("<document>\n")[1].split("\n</document>")[0]
        else "FACTUAL."
    )


class Server:
    """Answers each question by `reply`, which is given the request's number, from 1, and its body.

    Attributes:
      bodies, headers: of all requests, in the order in which they came.
      most: requests that were under way at the same time.
    """

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]):
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self._now = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    number = len(outer.bodies)
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                assert self.path == "/v1/chat/completions"
                status, headers, content = reply(number, body)
                with lock:
                    outer._now -= 1
                with contextlib.suppress(OSError):  # who asked may have gone
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def _prompt(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"]


def _honest(number: int, body: dict[str, Any]) -> Reply:
    return _completion(_truth(_prompt(body)))


def _judged(folder: Path, judge: Judge, output: str = "judge") -> Artifact:
    made = inputs(folder / "inputs", REAL, PAIRS, MADE)
    made = {name: made[name] for name in ("documents", "splits", "pairs", "synthesized", "synthetic")}
    target = Output(epath.Path(folder / output), Recipe("judge", 1, {}, {}), "judge")
    return stage.run(target, **made, judge=judge, prompts=questions.hashes(), execution=Execution())


def _of(made: Artifact) -> dict[str, Any]:
    return json.loads(made.file("judged.json").read_text())


def _shares(made: Artifact, measure: str) -> dict[str, float | None]:
    (found,) = [entry for entry in _of(made)["questions"] if entry["measure"] == measure]
    return {row["group"]: row[measure] for row in found["rows"]}


def test_planted_verdicts_come_back_as_shares_with_everything_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.02)
        return _honest(number, body)

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Server(reply) as server:
        made = _judged(tmp_path, Judge(server.url, "asked-for", documents=9, characters=600))
    assert _shares(made, "non_factual") == {
        "real": 0,
        "generated": pytest.approx(3 / 9),
        "accepted": pytest.approx(3 / 9),
    }
    assert _shares(made, "judged_unrelated") == dict.fromkeys(("true_pairs", "random", "generated", "accepted"), 0)
    rows = parquet.read(made).to_pylist()
    assert len(rows) == 7 * 9 and made.stats["unreadable"] == 0
    # Equal prompts, as of documents that were generated and accepted, are sent once.
    assert sorted(map(_prompt, server.bodies)) == sorted({row["prompt"] for row in rows}) and len(server.bodies) < 63
    for row in rows:
        assert row["prompt_hash"] == questions.digest(row["question"]) and row["model"] == "the-model-itself"
        assert row["answer"].strip("*. ").endswith(row["verdict"]) or row["verdict"] in row["answer"]
    (first,) = {(b["model"], b["temperature"], b["max_tokens"], len(b["messages"])) for b in server.bodies}
    assert first == ("asked-for", 0, 512, 1)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
    assert 2 <= server.most <= 4
    assert "secret" not in made.file("part-00000.parquet").read_bytes().decode("latin-1")
    told = _of(made)["questions"][0]
    assert told["rows"][1]["non_factual_low"] < 3 / 9 < told["rows"][1]["non_factual_high"]
    assert told["prompt"] == questions.prompt("factual")


FAULTS: dict[str, Reply] = {
    "overloaded": (503, {}, b"busy"),
    "too many requests": (429, {"Retry-After": "0"}, b"{}"),
    "garbage": (200, {}, b"<html>not json</html>"),
    "no choices": (200, {}, b'{"choices": []}'),
    "cut off": (200, {"Content-Length": "1000"}, b'{"choices": ['),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again(tmp_path: Path, fault: str) -> None:
    asked: Counter[str] = Counter()

    def reply(number: int, body: dict[str, Any]) -> Reply:
        asked[_prompt(body)] += 1
        return FAULTS[fault] if asked[_prompt(body)] <= 2 else _honest(number, body)

    with Server(reply) as server:
        made = _judged(tmp_path, Judge(server.url, "m", documents=3))
    assert _shares(made, "non_factual")["real"] == 0
    assert set(parquet.read(made)["attempts"].to_pylist()) == {3} and set(asked.values()) == {3}


def test_an_endpoint_that_is_slow_or_gone_is_given_up_in_the_end_with_what_to_do(tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(1)
        return _honest(number, body)

    with Server(reply) as server:
        with pytest.raises(SbpError, match="2 attempts.*timed out.*quality.judge.url=None"):
            _judged(tmp_path, Judge(server.url, "m", documents=1, seconds=0.2, attempts=2, at_once=1))
        assert len(server.bodies) == 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(SbpError, match="Connection refused"):
        _judged(tmp_path, Judge(url, "m", documents=1, attempts=2))


def test_waits_grow_and_do_what_the_endpoint_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(endpoint.time, "sleep", waits.append)
    replies = [
        (500, {}, b""),
        (429, {"Retry-After": "7"}, b""),
        (429, {"Retry-After": "Fri, 31 Dec"}, b""),
        (502, {}, b""),
    ]
    with Server(lambda number, body: replies[number - 1] if number < 5 else _honest(number, body)) as server:
        answer = endpoint.ask(Judge(server.url, "m"), "<document>\nx\n</document>")
    assert waits == [1, 7, 4, 8] and answer.attempts == 5


@pytest.mark.parametrize(
    ("status", "told"),
    [(401, "OPENAI_API_KEY"), (404, "quality.judge.model"), (400, "quality.judge.characters"), (413, "characters")],
)
def test_a_refusal_stops_at_once_and_says_what_to_change(tmp_path: Path, status: int, told: str) -> None:
    """Guards against asking hundreds of times what is refused each time."""
    with Server(lambda number, body: (status, {}, b'{"error": "no such thing"}')) as server:
        with pytest.raises(SbpError, match=f"HTTP {status}.*no such thing.*{told}"):
            _judged(tmp_path, Judge(server.url, "m", documents=9, at_once=1))
        assert len(server.bodies) == 1


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    """Guards the journal: the endpoint goes down half-way, and answers under way are kept."""
    with Server(lambda number, body: _honest(number, body) if number <= 10 else (400, {}, b"")) as server:
        with pytest.raises(SbpError):
            _judged(tmp_path, Judge(server.url, "m", documents=9))
        first = server.bodies[:10]
    with Server(_honest) as server:
        made = _judged(tmp_path, Judge(server.url, "m", documents=9))
        assert Counter(map(_prompt, [*first, *server.bodies])) == Counter(set(parquet.read(made)["prompt"].to_pylist()))
    with Server(_honest) as server:
        whole = _judged(tmp_path, Judge(server.url, "m", documents=9), "whole")
    assert parquet.read(whole).equals(parquet.read(made)) and _of(whole) == _of(made)
    assert not (made.path / stage.JOURNAL).exists()


@pytest.mark.parametrize("content", ["I cannot say.", "", None, "FACTUAL or NONFACTUAL", "FACTUAL, mostly", "yes"])
def test_an_answer_that_cannot_be_read_is_counted_and_in_no_share(tmp_path: Path, content: str | None) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return _completion(content) if "FALSE" in _prompt(body) else _honest(number, body)

    with Server(reply) as server:
        made = _judged(tmp_path, Judge(server.url, "m", documents=12))
    row = _of(made)["questions"][0]["rows"][1]
    assert (row["documents"], row["unreadable"], row["non_factual"]) == (12, 4, 0)
    assert made.stats["unreadable"] > 0


def test_answers_are_read_by_their_last_line_alone() -> None:
    factual = questions.QUESTIONS[0]
    answers = {
        "FACTUAL": "FACTUAL",
        " nonfactual.\n\n": "NONFACTUAL",
        "It is FACTUAL because\n**NONFACTUAL**": "NONFACTUAL",
        "FACTUAL\nbecause it is true": None,
        "NON FACTUAL": None,
        "NOT FACTUAL": None,
        "RELATED": None,
    }
    assert {answer: questions.verdict(factual, answer) for answer in answers} == answers


def test_a_document_cannot_fill_in_the_prompt() -> None:
    found = questions.filled("related", "{seed} of {document}", "{document} first", 15)
    assert "<first>\n{document} firs\n" in found and "<second>\n{seed} of {docu\n" in found


def test_without_an_address_nobody_is_asked_and_the_address_changes_no_result(tmp_path: Path) -> None:
    """Guards against a judge that is on by default, and against asking again after the endpoint moved."""

    def recipes(**fields: Any) -> dict[str, str]:
        experiment = load("configs/quickstart.py", tiny=True)
        judge = dataclasses.replace(experiment.quality.judge, **fields)
        experiment = dataclasses.replace(experiment, quality=dataclasses.replace(experiment.quality, judge=judge))
        return {name: recipe.key for name, recipe in Pipeline(experiment, str(tmp_path)).recipes.items()}

    assert Quality().judge.url is None
    off = recipes(model="m")
    assert "judge" not in off and "quality" in off
    on = recipes(url="http://here/v1", model="m")
    assert set(on) - set(off) == {"judge"} and on["quality"] != off["quality"]
    assert {name: key for name, key in on.items() if name not in ("judge", "quality", "report")} == {
        name: key for name, key in off.items() if name not in ("quality", "report")
    }
    moved = recipes(url="http://there/v1", model="m", key="OTHER", at_once=9, seconds=1.0)
    assert {name for name in on if on[name] != moved[name]} == {"report"}  # which shows the config
    assert recipes(url="http://here/v1", model="n")["judge"] != on["judge"]
    for fields, told in (({"url": "localhost:8000"}, "address of an OpenAI"), ({"url": "http://x/v1"}, "judge.model")):
        assignments = [f"quality.judge.{name}={value}" for name, value in fields.items()]
        with pytest.raises(SbpError, match=told):
            load("configs/quickstart.py", assignments)
    assert override(load("configs/quickstart.py"), "quality.judge.documents=5").quality.judge.documents == 5
