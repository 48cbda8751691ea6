"""Chat completions of an OpenAI-compatible endpoint, over HTTP: https://platform.openai.com/docs/api-reference/chat.

Greedy (temperature 0), one message a question. What may pass is tried again, waiting longer each time: no connection,
no answer in time, 408, 409, 429, 5xx, an answer that is none. What will not pass stops the run: any other 4xx.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from sbp_jax.config import Judge
from sbp_jax.errors import SbpError

PASSING = (408, 409, 429)  # client errors that may pass
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the second attempt, doubled before each further one, and at most
SHOWN = 300  # characters of an endpoint's complaint that are repeated


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
      text: of the message; "" where it has none, as when all tokens went into reasoning.
      finish: why the model stopped, as it says.
      model: that answered, as it says.
      attempts: that were needed.
    """

    text: str
    finish: str
    model: str
    attempts: int


class _Passing(Exception):
    """Something that may pass, and the seconds that the endpoint asks to wait."""

    def __init__(self, reason: str, seconds: float = 0.0):
        super().__init__(reason)
        self.seconds = seconds


def ask(judge: Judge, prompt: str) -> Answer:
    """Asks one question, again and again where need be.

    Raises:
      SbpError: the endpoint refuses the question, or every attempt failed.
    """
    reasons: list[str] = []
    for attempt in range(1, judge.attempts + 1):
        try:
            return _attempt(judge, prompt, attempt)
        except _Passing as error:
            reasons.append(str(error))
            if attempt < judge.attempts:
                time.sleep(min(max(FIRST_WAIT * 2 ** (attempt - 1), error.seconds), LONGEST_WAIT))
    raise SbpError(
        f"the judge at {judge.url} gave no answer in {judge.attempts} attempts ({reasons[-1]}); what was answered is"
        " kept: run again when it is up, or set quality.judge.url=None to go on without one"
    )


def _attempt(judge: Judge, prompt: str, attempt: int) -> Answer:
    body = {
        "model": judge.model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": judge.max_tokens,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(judge.key):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{(judge.url or '').rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=judge.seconds) as response:
            return _read(response.read(), attempt)
    except urllib.error.HTTPError as error:
        if error.code in PASSING or error.code >= 500:
            raise _Passing(f"HTTP {error.code}", _asked_to_wait(error)) from error
        told = error.read()[:SHOWN].decode(errors="replace").strip()
        raise SbpError(_refused(judge, error.code, told)) from error
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise _Passing(f"{type(error).__name__}: {error}") from error


def _read(content: bytes, attempt: int) -> Answer:
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        start = content[:SHOWN].decode(errors="replace")
        raise _Passing(f"an answer that is no chat completion: {start!r}") from error
    if text is not None and not isinstance(text, str):
        raise _Passing("an answer whose content is no text")
    return Answer(text or "", str(choice.get("finish_reason")), str(found.get("model")), attempt)


def _asked_to_wait(error: urllib.error.HTTPError) -> float:
    """Seconds of a Retry-After header; 0 where there is none, or a date."""
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    return float(asked) if asked.isdigit() else 0.0


def _refused(judge: Judge, code: int, told: str) -> str:
    remedies = {
        401: f"set the environment variable {judge.key} to its key",
        403: f"set the environment variable {judge.key} to a key that may use {judge.model}",
        404: "check quality.judge.url, which ends in /v1 for most, and quality.judge.model",
        413: "lower quality.judge.characters",
    }
    remedy = remedies.get(
        code, "check quality.judge.model, and lower quality.judge.characters where texts are too long"
    )
    return f"the judge at {judge.url} refuses the question: HTTP {code} {told!r}; {remedy}"
