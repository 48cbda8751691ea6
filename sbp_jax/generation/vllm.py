"""vLLM as a second engine, in a process and an environment of its own (`vllm_worker.py`).

It is asked for what the JAX engine is asked for, and answers in the same form: end_of_document ends a text, the
separator is never chosen, log probabilities are those at temperature 1 without truncation, and a text that loops is cut
by the same rule.
"""

import hashlib
import json
import math
import os
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from etils import epath

from sbp_jax.errors import SbpError
from sbp_jax.generation.loops import PERIOD, copies_of, loop_end
from sbp_jax.generation.requests import Completion, Request
from sbp_jax.model import huggingface
from sbp_jax.text.tokenizer import TextTokenizer

WORKER = Path(__file__).with_name("vllm_worker.py")
IN_FLIGHT = 4  # requests that the worker has, in multiples of the slots; it wants at least two
LOG_LINES = 25  # of the worker's log, shown when it fails
CACHE_BLOCK = 128  # positions that vLLM's cache on a CPU is handed out by
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler in the worker itself, which makes its order repeatable
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process would hold the worker's end of the pipe
}


class Vllm:
    """vLLM with a model loaded: `generate` like `Engine`'s. It starts with the first requests and ends with the object.

    Attributes:
      version: of vLLM, once it runs.
    """

    def __init__(
        self,
        folder: epath.Path,
        tokenizer: TextTokenizer,
        *,
        context: int,
        slots: int,
        seed: int,
        dtype: str,
        python: str | None,
        name: str,
        devices: int = 1,
    ):
        """Verifies what can be known before vLLM runs.

        Args:
          folder: of a Hugging Face model, on a local disk; its own tokenizer is not read.
          tokenizer: its special tokens end documents and are never chosen, respectively.
          context: most tokens of a prompt and what it is continued by.
          slots: sequences generated at the same time.
          seed: `synthesis.seed`.
          dtype: of activations: float32 or bfloat16.
          python: of the environment that vLLM is installed in.
          name: of the model, for messages.
          devices: that the model is divided over.

        Raises:
          SbpError: no such Python, or the model lacks rows for some tokens of the tokenizer.
        """
        if python is None:
            raise SbpError(
                "execution.engine is vllm, and execution.vllm_python does not say where it is installed; make an"
                " environment for it (docs/synthesis.md) and set execution.vllm_python to its bin/python"
            )
        if not os.access(python, os.X_OK) or not Path(python).is_file():
            raise SbpError(f"execution.vllm_python is {python}, which is no program; give the path of a bin/python")
        if not Path(folder).is_dir():
            raise SbpError(
                f"vLLM reads models from local disks, and {folder} is not on one; copy it, or use engine jax"
            )
        checkpoint = huggingface.inspect(folder)
        if checkpoint.vocabulary < tokenizer.vocab_size:
            raise SbpError(
                f"{name} has {checkpoint.vocabulary} embeddings and the tokenizer {tokenizer.vocab_size} tokens;"
                " use the tokenizer of the model"
            )
        model = checkpoint.model
        position = 2 * model.layers * model.kv_heads * model.head_dim * (4 if dtype == "float32" else 2)
        self.python, self.slots, self.name, self.seed = python, slots, name, seed
        self.version: str | None = None
        self._context, self._end_of_document = context, tokenizer.end_of_document
        self._banned = [tokenizer.separator, *range(tokenizer.vocab_size, checkpoint.vocabulary)]
        self._settings = {
            "folder": str(folder),
            "dtype": dtype,
            "context": context,
            "positions": max(context, checkpoint.context),
            "slots": slots,
            "devices": devices,
            "seed": seed & (2**31 - 1),
            "end_of_document": tokenizer.end_of_document,
            "banned": self._banned,
            "loops": [[period, period * copies_of(period)] for period in range(1, PERIOD + 1)],
            "cache_bytes": (slots + 1) * -(-context // CACHE_BLOCK) * CACHE_BLOCK * position,
        }
        self._worker: _Worker | None = None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields completions as they finish; requests are taken in order, as the worker has room for them.

        Raises:
          SbpError: vLLM does not run, dies, refuses a request, or gives log probabilities that are no numbers.
        """
        pending = iter(requests)
        flying: dict[int, Request] = {}
        taken, ended = 0, False
        worker = self._started()
        try:
            while True:
                while not ended and len(flying) < IN_FLIGHT * self.slots:
                    if (request := next(pending, None)) is None:
                        worker.send({"end": True})
                        ended = True
                        break
                    flying[taken] = request
                    worker.send(self._message(taken, request))
                    taken += 1
                if not flying:
                    return
                answer = worker.receive()
                request = flying.pop(answer["number"])
                yield self._completion(request, answer)
        finally:
            if flying:  # given up on the way: what is still under way must not be taken for later requests
                self.close()

    def close(self) -> None:
        """Ends the worker; it starts again with the next requests."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _started(self) -> "_Worker":
        if self._worker is None:
            self._worker = _Worker(self.python, self._settings)
            self.version = self._worker.receive()["version"]
        return self._worker

    def _message(self, number: int, request: Request) -> dict:
        length = len(request.prompt)
        if length + request.limit > self._context:
            raise SbpError(
                f"the prompt of seed document {request.ordinal} has {length} tokens, and with {request.limit} new ones"
                f" it does not fit a context of {self._context}; raise tuning.context or lower synthesis.max_new_tokens"
            )
        sampling = request.sampling
        return {
            "number": number,
            "prompt": np.asarray(request.prompt).tolist(),
            "limit": request.limit,
            "seed": _seed(self.seed, request),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }

    def _completion(self, request: Request, answer: dict) -> Completion:
        whose = f"seed document {request.ordinal}, sample {request.sample}"
        if "error" in answer:
            raise SbpError(f"vLLM refuses the request of {whose}: {answer['error']}")
        tokens, logprobs = np.array(answer["tokens"], np.int32), answer["logprobs"]
        if not all(map(math.isfinite, logprobs)):
            raise SbpError(
                f"{self.name} gives logits that are no finite numbers for {whose};"
                " its training diverged: lower tuning.peak_lr, or use another checkpoint"
            )
        if wrong := set(self._banned).intersection(answer["tokens"]):
            raise SbpError(
                f"this build of vLLM chose token {wrong.pop()} for {whose}, which it may not: it knows no biases of"
                " logits; use another build, or engine jax"
            )
        text = tokens[:-1] if answer["finish"] == "stop" else tokens
        if (end := loop_end(text)) is not None:
            return Completion(request, text[:end], "loop", math.fsum(logprobs[:end]))
        return Completion(request, text, "end" if answer["finish"] == "stop" else "length", math.fsum(logprobs))


class _Worker:
    """The process, a line to it and a line from it."""

    def __init__(self, python: str, settings: dict):
        self._python = python
        self._log: IO[bytes] = tempfile.TemporaryFile()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        # -I: else the files beside the worker's would come before the packages of the same names, vllm among them.
        self._process = subprocess.Popen(
            [python, "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment | ENVIRONMENT,
            start_new_session=True,  # a group of its own, which is killed whole
        )
        self._end = weakref.finalize(self, _end, self._process)
        self.send(settings)

    def send(self, message: dict) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def receive(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._failure()
        answer: dict = json.loads(line)
        return answer

    def close(self) -> None:
        self._end()

    def _failure(self) -> SbpError:
        status = self._process.wait()
        self.close()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        killed = status == -signal.SIGKILL
        how = "was killed; if memory was short, lower execution.slots" if killed else f"ended with status {status}"
        return SbpError("\n  ".join([f"vLLM, run by {self._python}, {how}; the end of its log:", *lines]))


def _end(process: subprocess.Popen) -> None:
    """Kills the worker and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                pass


def _seed(seed: int, request: Request) -> int:
    """63 random bits, a function of what makes a request's random keys."""
    counters = f"{seed}:{request.ordinal}:{request.sample}".encode()
    return int.from_bytes(hashlib.blake2b(counters, digest_size=8).digest(), "big") >> 1
