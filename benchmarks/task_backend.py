"""One backend of lm-eval on the requests of a task, timed: requests/s after a first pass, as a line of JSON.

.venv-interop/bin/python benchmarks/task_backend.py ours|hf FOLDER TASK --data DATA [--limit N] [--batch 16]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sbp_jax.parallel import machine
from sbp_jax.tasks import harness
from sbp_jax.tasks.local import Asked


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend", choices=("ours", "hf"))
    parser.add_argument("folder")
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument(
        "--batch", type=int, default=16, help="requests of the other backend that are computed together"
    )
    options = parser.parse_args()
    machine.prepare()
    harness.prepare()
    model = backend(options)
    keeping: Any = Keeping()
    harness.ask(keeping, Asked(options.task, None, options.limit, options.data))
    began = time.perf_counter()
    model.loglikelihood(keeping.requests, disable_tqdm=True)  # compiles, or finds its threads
    first, began = time.perf_counter() - began, time.perf_counter()
    answers = model.loglikelihood(keeping.requests, disable_tqdm=True)
    seconds, count = time.perf_counter() - began, len(keeping.requests)
    total = sum(answer[0] for answer in answers)
    print(json.dumps({"rate": count / seconds, "requests": count, "first": first, "seconds": seconds, "total": total}))


def backend(options: argparse.Namespace) -> Any:
    if options.backend == "ours":
        from sbp_jax.tasks.lm import DecoderLM

        return DecoderLM(options.folder)
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=options.folder, device="cpu", dtype="float32", batch_size=options.batch)


def Keeping() -> Any:
    """A model that answers nothing in particular and keeps its requests."""
    from lm_eval.api.model import LM

    class Kept(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            self.requests = requests
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError

    return Kept()


if __name__ == "__main__":
    main()
