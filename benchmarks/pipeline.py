"""What one core does of each CPU stage, beside what nothing can do without.

    python benchmarks/pipeline.py [--documents 100000] [--only ingest tokenize pack mix]

Documents are texts of `data/wikipedia_vital` put together to `--characters` each, all different. Seconds are processor
time of all threads and children of this process, so that another load on the machine changes little. Each stage runs in
one process, and behind it the part that no implementation is spared: reading JSON, encoding the same texts, copying the
same tokens.
"""

import argparse
import gzip
import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from texts import CORPUS

from sbp_jax.artifacts import Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Corpus, Execution, Splits, Tokenizer
from sbp_jax.data.mixing import Plan, mix
from sbp_jax.data.rows import RowSource
from sbp_jax.stages import ingest, pack, split, tokenize, train_tokenizer
from sbp_jax.text.tokenizer import load

STAGES = ("ingest", "tokenize", "pack", "mix")
ALONE = Execution(workers=1)
SETTINGS = Tokenizer(vocab_size=8192)
CONTEXT, ROWS = 1024, 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=STAGES, choices=STAGES)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder), options.documents, options.characters)
        measure(Path(folder), file, set(options.only))


def write(folder: Path, documents: int, characters: int) -> Path:
    with gzip.open(CORPUS, "rt") as stream:
        sentences = [sentence for line in stream for sentence in json.loads(line)["text"].split(". ")]
    chance, file = random.Random(0), folder / "documents.jsonl"
    with file.open("w") as stream:
        for number in range(documents):
            text = ""
            while len(text) < characters:
                text += chance.choice(sentences) + ". "
            stream.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return file


def measure(folder: Path, file: Path, wanted: set[str]) -> None:
    size = file.stat().st_size
    corpus = Corpus(paths=(str(file),))
    documents, spent = timed(lambda: ingest.run(output(folder, "documents"), corpus=corpus, execution=ALONE))
    if "ingest" in wanted:
        _, least = timed(lambda: [json.loads(line) for line in file.open("rb")] and None)
        tell("ingest", documents.rows / 1000 / spent, "1,000 documents/s", least / spent, "json.loads")
    splits = split.run(output(folder, "splits"), documents=documents, splits=Splits(), execution=ALONE)
    inputs: dict[str, Any] = {"documents": documents, "splits": splits}
    tokenizer = train_tokenizer.run(output(folder, "tokenizer"), **inputs, tokenizer=SETTINGS, execution=ALONE)
    tokens, spent = timed(
        lambda: tokenize.run(
            output(folder, "tokens"), documents=documents, tokenizer=tokenizer, settings=SETTINGS, execution=ALONE
        )
    )
    encoder = load(tokenizer.file("tokenizer.json"), SETTINGS)
    if "tokenize" in wanted:
        texts = [text for table in parquet.tables(documents, ["text"]) for text in table["text"].to_pylist()]
        _, least = timed(lambda: encode(encoder, texts))
        tell("tokenize", tokens.stats["bytes"] / 1e6 / spent, "MB/s", least / spent, "tokenizers alone")
    inputs |= {"tokens": tokens, "tokenizer": tokenizer}
    rows, spent = timed(
        lambda: pack.run(
            output(folder, "rows"), **inputs, stream="oracle", context=CONTEXT, settings=SETTINGS, execution=ALONE
        )
    )
    if "pack" in wanted:
        records = arrayrecord.source(tokens)
        order = np.random.default_rng(0).permutation(len(records)).tolist()
        _, least = timed(lambda: sum(len(records[place]) for place in order))
        tell("pack", rows.stats["targets"] / 1e6 / spent, "1,000,000 tokens/s", least / spent, "reading the tokens")
    if "mix" in wanted:
        source = RowSource(rows, rows.stats["full_rows"])
        plan = Plan({"real": len(source) // ROWS * ROWS}, {"real": len(source)}, CONTEXT)
        batches, spent = timed(lambda: sum(1 for _ in mix({"real": source}, plan, ROWS, 0)))
        read = [source[place] for place in range(min(2000, len(source)))]
        _, least = timed(
            lambda: [np.stack([row.tokens for row in read[i : i + ROWS]]) for i in range(0, len(read), ROWS)]
        )
        least *= batches * ROWS / len(read)
        tell("mix", batches * ROWS * CONTEXT / 1e6 / spent, "1,000,000 tokens/s", least / spent, "stacking the tokens")
    print(f"{documents.rows:,} documents, {size / 1e6:.0f} MB, {tokens.stats['tokens'] / 1e6:.1f} million tokens")


def encode(encoder: Any, texts: list[str]) -> None:
    for start in range(0, len(texts), tokenize.BATCH):
        encoder.encode_batch(texts[start : start + tokenize.BATCH])


def output(folder: Path, name: str) -> Output:
    return Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and seconds of processor time."""
    before = _seconds()
    result = work()
    return result, _seconds() - before


def _seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def tell(stage: str, rate: float, unit: str, share: float, least: str) -> None:
    print(f"{stage:<10} {rate:8.2f} {unit:<20} {share:5.0%} of it {least}", flush=True)


if __name__ == "__main__":
    main()
