"""Greedy texts of a fixed length from `generate` of transformers, in batches padded on the left: tokens/s.

    .venv-peers/torch/bin/python benchmarks/peers/transformers_generate.py FOLDER PROMPTS.json --new 128 --batch 8 16 32

FOLDER is a Hugging Face model, PROMPTS.json a list of lists of token ids. Prompts of like length share a batch. A line
for each batch size, the texts of the last.
"""

import argparse
import json
import time
from pathlib import Path

import stopwatch
import torch
from transformers import AutoModelForCausalLM

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--texts", type=Path, help="a file for the tokens, in the order of the prompts")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    prompts = json.loads(options.prompts.read_text())
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=getattr(torch, options.dtype)).eval()
    model.generation_config.eos_token_id = None  # so that every text has its full length
    model.generation_config.pad_token_id = 0

    def generate(numbers: list[int]) -> list[list[int]]:
        longest = max(len(prompts[number]) for number in numbers)
        tokens = torch.zeros(len(numbers), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, number in enumerate(numbers):
            tokens[row, longest - len(prompts[number]) :] = torch.tensor(prompts[number])
            mask[row, longest - len(prompts[number]) :] = 1
        settings = {"max_new_tokens": options.new, "min_new_tokens": options.new, "do_sample": False}
        with torch.inference_mode():
            return model.generate(tokens, attention_mask=mask, **settings)[:, longest:].tolist()

    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    texts: dict[int, list[int]] = {}
    for batch in options.batch:
        groups = [by_length[start : start + batch] for start in range(0, len(prompts), batch)]
        generate(groups[0])
        start, cpu = time.perf_counter(), time.process_time()
        for group in groups:
            texts.update(zip(group, generate(group), strict=True))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        total = sum(map(len, texts.values()))
        assert total == len(prompts) * options.new
        line = {
            "tokens_per_second": total / seconds,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "tokens": total,
            "dtype": options.dtype,
            "batch": batch,
            "versions": stopwatch.versions(("torch", "transformers")),
        }
        print(json.dumps(line), flush=True)
    if options.texts:
        options.texts.write_text(json.dumps([texts[number] for number in range(len(prompts))]))


if __name__ == "__main__":
    main()
