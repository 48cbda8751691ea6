"""The documents that the embedders of a comparison read, and the cores that each of them gets."""

import gzip
import json
import os
from pathlib import Path

CORES = 2
CORPUS = Path(__file__).parents[2] / "data" / "wikipedia_vital" / "documents.jsonl.gz"


def texts(count: int) -> list[str]:
    """So many documents, evenly spread over the corpus."""
    with gzip.open(CORPUS, "rt") as stream:
        documents = [json.loads(line)["text"] for line in stream]
    return [documents[place * len(documents) // count] for place in range(count)]


def use_two_cores() -> None:
    """Keeps this process to two cores, where there are more; has to come before any library starts its threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
