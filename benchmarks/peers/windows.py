"""Documents of 4 KB that overlap with their neighbours, and pairs of them: the same for everyone."""

import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

ARTICLES = Path(__file__).parents[2] / "data" / "wikipedia_vital" / "documents.jsonl.gz"
DOCUMENTS, LENGTH, PAIRS = 3000, 4096, 30_000


def documents() -> list[str]:
    with gzip.open(ARTICLES, "rt") as stream:
        articles = [json.loads(line)["text"] for line in stream]
    # Of 461 bytes in the middle, so that nine of them are enough; one window begins three after the other.
    windows = ("\n\n".join(articles[start : start + 20])[:LENGTH] for start in range(0, 3 * DOCUMENTS, 3))
    return list(windows)


def pairs() -> list[tuple[int, int]]:
    """Pairs as a search gives them: some neighbours of each document, near ones that overlap and far ones."""
    chance = random.Random(0)
    first = sorted(chance.choices(range(DOCUMENTS), k=PAIRS))
    return [(d1, (d1 + chance.choice((1, 2, 5, 100, 1000))) % DOCUMENTS) for d1 in first]


def per_second(count: int, work: Callable[[], object]) -> float:
    """By the processor time of this process, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return count / best
