"""Log-likelihood requests of tasks beside lm-eval's Hugging Face backend: requests/s of one checkpoint on one CPU.

Both in float32 on SmolLM2-135M, in turns, each in a process of its own, in the environment of the interop tests. The
other backend is taken at the best of its batch sizes. Times are of a second pass over the same requests: the first
compiles. Without `--data` the items are made of the packaged documents, as long as those of ARC-Easy and of LAMBADA.

    make .venv-interop/.installed
    python benchmarks/evaluation_tasks.py [--rounds 3] [--data FOLDER] [--folder MODEL] [--limit 64]
"""

import argparse
import gzip
import json
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-interop" / "bin" / "python"
TASKS = ("arc_easy", "lambada_openai")
BATCHES = (1, 8, 32)


def main(rounds: int, data: str | None = None, folder: str | None = None, limit: int = 64) -> None:
    """Prints requests/s of both backends on each task, and the ratio."""
    if not PYTHON.exists():
        print("the environment of the other backend is missing: make .venv-interop/.installed")
        return
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = f"{scratch}/smollm2"
            _run(str(ROOT / "benchmarks/peers/smollm2_folder.py"), folder)
        if data is None:
            data = f"{scratch}/data"
            _plant(Path(data))
        print(f"\nRequests/s, {limit} items, float32 (ratio: wanted at least 1)")
        print(f"{'':<16}{'ours':>10}{'theirs':>10}{'batch':>7}{'ratio':>8}{'first pass, s':>16}")
        for task in TASKS:
            asked = (folder, task, "--data", data, "--limit", str(limit))
            tried = {size: _rate("hf", *asked, "--batch", str(size))["rate"] for size in BATCHES}
            best = max(tried, key=lambda size: tried[size])
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(_rate("ours", *asked))
                theirs.append(_rate("hf", *asked, "--batch", str(best)))
            assert abs(ours[0]["total"] / theirs[0]["total"] - 1) < 1e-4, "the backends do not agree"
            rates = [statistics.median(one["rate"] for one in found) for found in (ours, theirs)]
            first = f"{ours[0]['first']:.1f} / {theirs[0]['first']:.1f}"
            print(
                f"{task:<16}{rates[0]:>10.2f}{rates[1]:>10.2f}{best:>7}{rates[0] / rates[1]:>8.2f}{first:>16}",
                flush=True,
            )


def _rate(backend: str, *arguments: str) -> dict[str, float]:
    return _run(str(ROOT / "benchmarks/task_backend.py"), backend, *arguments)


def _run(*command: str) -> dict[str, float]:
    done = subprocess.run([PYTHON, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def _plant(folder: Path) -> None:
    """Items of the packaged documents: questions of 20 words with four answers, passages without their last word."""
    folder.mkdir()
    draw = random.Random(0)
    with gzip.open(ROOT / "data/wikipedia_vital/documents.jsonl.gz", "rt") as stream:
        texts = [json.loads(line)["text"].split() for line in stream]
    long = [words for words in texts if len(words) > 120]

    def piece(least: int, most: int) -> str:
        words, size = draw.choice(long), draw.randint(least, most)
        start = draw.randint(0, len(words) - size)
        return " ".join(words[start : start + size])

    questions = [
        {"query": f"Question: {piece(12, 30)}?", "choices": [piece(2, 7) for _ in range(4)], "gold": 0}
        for _ in range(500)
    ]
    passages = [{"text": piece(60, 90)} for _ in range(500)]
    for task, records in zip(TASKS, (questions, passages), strict=True):
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data")
    parser.add_argument("--folder")
    parser.add_argument("--limit", type=int, default=64)
    options = parser.parse_args()
    main(options.rounds, options.data, options.folder, options.limit)
