"""How many documents of 4 KB one core filters in a second: the whole stage, and each filter alone.

    python benchmarks/filters.py [--documents 20000] [--index exact|bloom]

Real and synthetic documents are sentences of `data/wikipedia_vital` in random order, of one half of the articles and of
the other; one sentence in twenty of a synthetic document is its seed's, and every twentieth document is a copy of an
earlier one. Seconds are processor time of all threads of this process.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from etils import epath

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from texts import CORPUS

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, Filters
from sbp_jax.data import synthetic
from sbp_jax.data.references import references
from sbp_jax.data.synthetic_scores import BATCH, LENGTHS, in_common_with_seeds, score
from sbp_jax.stages import filter as stage
from sbp_jax.stages import screen
from sbp_jax.text.contamination import Evaluations, read
from sbp_jax.text.language import language
from sbp_jax.text.repetition import repetition
from sbp_jax.text.shingles import shingle_sets, words

LENGTH, REAL, SHARD = 4096, 10_000, 2048
HELD_OUT = 20  # one of so many real documents is a test document
ITEMS = 5000  # of an evaluation set, which no document holds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--index", default="exact", choices=("exact", "bloom"))
    arguments = parser.parse_args()
    chance = random.Random(0)
    with gzip.open(CORPUS, "rt") as stream:
        articles = [json.loads(line)["text"] for line in stream]
    sentences = [[sentence for text in articles[half::2] for sentence in text.split(". ")] for half in (0, 1)]
    real = [mixture(sentences[0], sentences[0], chance) for _ in range(REAL)]
    seeds = [chance.randrange(REAL) for _ in range(arguments.documents)]
    seeds = [seed + (seed % HELD_OUT == 0) for seed in seeds]  # the first of twenty is held out
    texts = [mixture(sentences[1], real[seed].split(". "), chance) for seed in seeds]
    texts = [texts[chance.randrange(place)] if place % 20 == 19 else text for place, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        inputs, sets = artifacts(Path(folder), real, texts, seeds, articles)
        sizes = len(texts), np.mean([len(text.encode()) for text in texts]), np.mean(np.diff(words(texts).offsets))
        print("{:,} documents of {:,.0f} bytes, {:.0f} words on average".format(*sizes))
        filters = Filters(index=arguments.index)
        start = time.process_time()
        config = {"evaluations": sets, "filters": filters, "execution": Execution()}
        made = stage.run(output(Path(folder), "out"), **inputs, **config)
        whole = time.process_time() - start
        index = f"{made.stats['index']} index of {made.stats['index_shingles']:,} shingles"
        print(f"{made.stats['accepted']:,} accepted, {index}, error {made.stats['index_error']:.2e}")
        print({name: number for name, number in made.stats.items() if name.startswith("rejected") and number})
        each(Path(folder), inputs, sets, texts, seeds, filters, whole)


def each(
    folder: Path,
    inputs: dict[str, Artifact],
    sets: Evaluations,
    texts: list[str],
    seeds: list[int],
    filters: Filters,
    whole: float,
) -> None:
    """Prints documents a second and microseconds a document of the parts, and of the whole stage."""
    items = read(sets)
    real = [inputs[name] for name in ("documents", "splits", "screened")]
    start = time.process_time()
    made = references(output(folder, "references"), *real, np.unique(seeds), filters.index)
    prepared = time.process_time() - start
    found = [words(batch) for batch in batches(texts)]
    hashes = [shingle_sets(batch)[0] for batch in found]
    conditioning = [[[seed] for seed in batch] for batch in batches(seeds)]

    def scores() -> None:
        for batch, own, read_for in zip(batches(texts), batches(seeds), conditioning, strict=True):
            score(batch, own, read_for, made, items)

    parts: dict[str, Callable[[], object]] = {
        "words, hashed": lambda: [words(batch) for batch in batches(texts)],
        "13-word shingles": lambda: [shingle_sets(batch) for batch in found],
        "repetition, three lengths": lambda: [repetition(batch, n) for batch in found for n in LENGTHS.values()],
        "copy of the seed": lambda: [
            in_common_with_seeds(batch, read_for, made) for batch, read_for in zip(found, conditioning, strict=True)
        ],
        "copy of capped or held-out": lambda: [(made.capped.holds(h), made.held_out.holds(h)) for h in hashes],
        "evaluation sets": lambda: [items.search(batch) for batch in found],
        "language": lambda: [language(text) for text in texts],
        "all scores": scores,
    }
    times = {name: seconds(work) for name, work in parts.items()}
    times["reading, writing, duplicates"] = whole - prepared - times["all scores"]
    times["the stage, real documents indexed"] = whole - prepared
    times[f"the stage, with indexing {REAL:,} real documents"] = whole
    print(f"{'':<48}{'µs a document':>14}{'documents/s':>14}")
    for name, value in times.items():
        print(f"{name:<48}{1e6 * value / len(texts):>14.0f}{len(texts) / value:>14,.0f}")


def mixture(sentences: list[str], others: list[str], chance: random.Random) -> str:
    """A text of LENGTH characters, a twentieth of it from the other sentences."""
    chosen = chance.sample(sentences, LENGTH // 50)
    return ". ".join(chance.choice(others) if chance.random() < 0.05 else sentence for sentence in chosen)[:LENGTH]


def artifacts(
    folder: Path, real: list[str], texts: list[str], seeds: list[int], articles: list[str]
) -> tuple[dict[str, Artifact], Evaluations]:
    count = len(real)
    columns = {"ordinal": range(count), "id": map(str, range(count)), "source": ["here"] * count, "text": real}
    split = ["test" if place % HELD_OUT == 0 else "capped" for place in range(count)]
    made = {
        "documents": stored(folder, "documents", pa.table({name: list(column) for name, column in columns.items()})),
        "splits": stored(folder, "splits", pa.table({"ordinal": list(range(count)), "split": split})),
    }
    plain = {"evaluations": Evaluations(), "execution": Execution()}
    made["screened"] = screen.run(output(folder, "screened"), **made, **plain)
    rows = [
        {"ordinal": place, "id": f"syn-{place}", "text": text, "seed": seed, "conditioning": [seed], "finish": "end"}
        for place, (text, seed) in enumerate(zip(texts, seeds, strict=True))
    ]
    made["synthesized"] = stored(folder, "synthesized", pa.Table.from_pylist(rows, synthetic.SCHEMA))
    items = [{"question": " ".join(reversed(text[-200:].split()))} for text in articles[:ITEMS]]
    (folder / "set.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return made, Evaluations((str(folder / "set.jsonl"),))


def stored(folder: Path, name: str, table: pa.Table) -> Artifact:
    target = output(folder, name)
    for index, start in enumerate(range(0, table.num_rows, SHARD)):
        part = table.slice(start, SHARD)
        target.shard(index, ".parquet", lambda writing, part=part: parquet.write(writing, part))
    return target.finish()


def output(folder: Path, name: str) -> Output:
    return Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)


def batches(values: list) -> Iterator[list]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))


def seconds(work: Callable[[], object]) -> float:
    """Processor time, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
