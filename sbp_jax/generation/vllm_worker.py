"""The process that runs vLLM, started by `vllm.py` with the Python of vLLM's own environment.

It imports the standard library and vLLM, nothing else of this package. One JSON object a line: the first that it reads
is its settings, the others are requests, or `{"end": true}` after the last of some; it writes one that names its
version, then completions as they finish. Everything else that is printed, by whomever, goes to standard error.

When the requests come in does not change what is computed with what: it waits while fewer are left than fill all slots
twice, so that a slot that becomes free always has a successor. It ends with its input, and kills its process group if
that takes long, so that a parent killed in any way leaves nothing behind.
"""

import json
import math
import os
import queue
import signal
import sys
import threading
import time
from typing import Any

PATIENCE = 10  # seconds that the end may take once the input has ended
LOOK = 32  # tokens of a text between two looks at whether it loops
READ = 2048  # tokens that are read in one step on a CPU, of any number of prompts
MOST_SCORED = 128  # tokens of which vLLM gives log probabilities beside the chosen one's


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # not inherited by other processes
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    inbox: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()

    def answer(message: dict) -> None:
        print(json.dumps(message), file=answers, flush=True)

    import vllm  # here, because it prints
    from vllm.exceptions import VLLMClientError

    engine = _engine(vllm, settings)
    answer({"version": vllm.__version__})
    texts: dict[str, tuple[list[int], list[float]]] = {}  # that grow: tokens and log probabilities
    ended = False
    while True:
        while True:
            starved = not texts or (not ended and len(texts) < 2 * settings["slots"])
            try:
                message = inbox.get(block=starved)
            except queue.Empty:
                break
            if message is None:
                return
            ended = "end" in message
            if ended:
                continue
            name, prompt = str(message["number"]), {"prompt_token_ids": message["prompt"]}
            try:
                engine.add_request(name, prompt, _parameters(vllm, message, settings))
            except (ValueError, VLLMClientError) as error:
                answer({"number": message["number"], "error": str(error)})
                continue
            texts[name] = ([], [])
        for output in engine.step():
            tokens, logprobs = texts[output.request_id]
            (piece,) = output.outputs
            tokens += piece.token_ids
            logprobs += _logprobs(piece, settings["banned"])
            finish = piece.finish_reason
            if not output.finished and _loops(tokens, settings["loops"]):
                engine.abort_request([output.request_id])
                finish = "loop"
            if finish is not None:
                del texts[output.request_id]
                done = {"tokens": tokens, "logprobs": logprobs, "finish": finish}
                answer({"number": int(output.request_id)} | done)


def _listen(inbox: "queue.SimpleQueue[dict | None]") -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)
    time.sleep(PATIENCE)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def _engine(vllm: Any, settings: dict) -> Any:
    from vllm.platforms import current_platform

    given = {
        "model": settings["folder"],
        "skip_tokenizer_init": True,
        "dtype": settings["dtype"],
        "max_model_len": settings["context"],
        "max_num_seqs": settings["slots"],
        "tensor_parallel_size": settings["devices"],
        "seed": settings["seed"],
        "hf_overrides": {"max_position_embeddings": settings["positions"]},
        "load_format": "safetensors",
        "generation_config": "vllm",  # the temperature of a generation_config.json is not asked for
        "logprobs_mode": "raw_logprobs",
        "stream_interval": LOOK,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():  # elsewhere it takes what memory there is
        given["kv_cache_memory_bytes"] = settings["cache_bytes"]
        # A prompt that is read in pieces has its random numbers rewound, which generators of a CPU cannot be.
        given |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(READ, settings["context"])}
    return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**given))


def _parameters(vllm: Any, message: dict, settings: dict) -> Any:
    """What vLLM is asked for; a bias of minus infinity is exact, and no bias is part of a raw log probability."""
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind

    given = {
        "temperature": message["temperature"],
        "top_p": message["top_p"],
        "top_k": message["top_k"],
        "max_tokens": message["limit"],
        "stop_token_ids": [settings["end_of_document"]],
        "ignore_eos": True,  # those of config.json; ours is the one above
        "detokenize": False,
        "output_kind": RequestOutputKind.DELTA,
    }
    if current_platform.is_tpu():  # knows neither biases nor seeds of requests
        return vllm.SamplingParams(**given, logprobs=1)
    return vllm.SamplingParams(
        **given,
        seed=message["seed"],
        flat_logprobs=True,
        logit_bias=dict.fromkeys(settings["banned"], -math.inf),
        logprob_token_ids=settings["banned"][:MOST_SCORED],
    )


def _loops(tokens: list[int], loops: list[list[int]]) -> bool:
    """Whether a text that still grows ends in a loop; the other side finds where that began.

    Args:
      loops: tokens of a stretch, and of all its copies.
    """
    last, length = tokens[-1], len(tokens)
    return any(
        length >= whole and tokens[-1 - period] == last and tokens[-whole:-period] == tokens[period - whole :]
        for period, whole in loops
    )


def _logprobs(piece: Any, banned: list[int]) -> list[float]:
    """Log probabilities of the chosen tokens among those that may be chosen."""
    logprobs, barred = [], set(banned)
    for token, scored in zip(piece.token_ids, piece.logprobs, strict=True):
        lost = sum(math.exp(other.logprob) for number, other in scored.items() if number in barred)
        # Where next to nothing is left, rounding must not leave less than nothing.
        logprobs.append(round(scored[token].logprob - math.log1p(-min(lost, 1 - 2**-24)), 6))
    return logprobs


if __name__ == "__main__":
    main()
