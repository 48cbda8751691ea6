"""Generation beside others that do the same, measured in turns on this machine, their texts compared.

    bash benchmarks/peers/setup.sh torch vllm              # once: the peers' environments
    python benchmarks/synthesis.py [--only throughput smollm2 mixed] [--rounds 3]
    python benchmarks/synthesis.py --only bandwidth        # needs a GPU

The figure to compare is the ratio. 64 prompts of 32 to 512 tokens are each continued by 128 tokens, the most probable
one each time; the model is a 12.6M Qwen3 of random weights, or SmolLM2-135M. Loading and compiling are not counted.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from train import MISSING, PEERS, ROOT, Measured, compare, peer, present

SCRIPT = str(ROOT / "benchmarks" / "ours_generation.py")
FOLDER = ROOT / "runs" / "benchmark-generation"
BATCHES = {"random": ("16", "32"), "smollm2": ("8",)}  # of transformers, the best ones first found by trying all


def main() -> None:
    figures: dict[str, Callable[[int], None]] = {
        "throughput": lambda rounds: throughput("random", rounds),
        "smollm2": lambda rounds: throughput("smollm2", rounds),
        "mixed": mixed,
        "bandwidth": bandwidth,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=figures, default=[name for name in figures if name != "bandwidth"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.only:
        figures[name](options.rounds)


def throughput(model: str, rounds: int) -> None:
    folder = FOLDER / model
    if not (folder / "prompts.json").exists() and not _prepare(model, folder):
        return
    asked = (str(folder), str(folder / "prompts.json"))

    def texts(name: str) -> tuple[str, str]:
        return "--texts", str(folder / f"{name}.json")

    everybody = [Measured("ours", None, (SCRIPT, "generate", *asked, *texts("ours")))]
    for batch in BATCHES[model]:
        extra = ("--batch", batch, *texts("transformers"))
        everybody.append(peer(f"transformers {batch}", "torch", "transformers_generate.py", *asked, *extra))
    for dtype in ("float32", "bfloat16"):
        name = f"vLLM {dtype}"
        everybody.append(peer(name, "vllm", "vllm_generate.py", *asked, "--dtype", dtype, *texts(name)))
    compare(f"Tokens/s, {model} weights (ratio: higher is better)", everybody, "tokens_per_second", rounds)
    _agreement(folder)


def mixed(_: int) -> None:
    """Prompts and texts of very different lengths: how busy the slots are, and the host."""
    if not (FOLDER / "random" / "prompts.json").exists():
        _prepare("random", FOLDER / "random")
    line = Measured("ours", None, (SCRIPT, "mixed", str(FOLDER / "random"), "--requests", "1600")).run()
    print("\nA workload of mixed lengths (wanted: slots busy above 0.90, host below 0.05)")
    print(json.dumps(line))


def bandwidth(_: int) -> None:
    subprocess.run([sys.executable, SCRIPT, "bandwidth", "--slots", "64", "128", "256"], check=True)


def _prepare(model: str, folder: Path) -> bool:
    """Writes the model and the prompts; False where the environment for that is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if model == "smollm2":
        convert = peer("SmolLM2", "torch", "smollm2_folder.py", str(folder))
        if not present(convert):
            return False
        convert.run()
    Measured(
        "prompts",
        None,
        (SCRIPT, "prepare", str(folder), "--keep") if model == "smollm2" else (SCRIPT, "prepare", str(folder)),
    ).run()
    return True


def _agreement(folder: Path) -> None:
    """How many texts are ours to the last token, and how many tokens come before the first difference."""
    ours = json.loads((folder / "ours.json").read_text())
    for file in sorted(folder.glob("*.json")):
        if file.stem in ("ours", "prompts", "config", "generation_config", "tokenizer", "tokenizer_config"):
            continue
        theirs = json.loads(file.read_text())
        if not isinstance(theirs, list):
            continue
        first = [
            next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
            for x, y in zip(ours, theirs, strict=True)
        ]
        equal = sum(x == y for x, y in zip(ours, theirs, strict=True))
        print(f"{file.stem}: {equal} of {len(ours)} texts equal ours; {min(first)} tokens at least before a difference")


if __name__ == "__main__":
    assert PEERS.exists(), MISSING
    main()
