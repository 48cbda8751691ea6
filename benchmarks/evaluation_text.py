# ruff: noqa: E402
"""Scoring text beside the forward pass of training: targets/s in turns, in one process.

The forward pass is that of the training step, loss included, on a batch that lies on the device already, of which every
position is a target. `rows` scores the packed rows of a text set to the nats of each document; `files`
does all of it, from JSON Lines to scores on disk: records, tokens, windows, rows, reading the model. Positions that are
no targets, because no document fits there, count for nothing. Compilation is over before anything is timed.

    python benchmarks/evaluation_text.py [--rounds 3] [--rows 160] [--shape 16M|1B] [--corpus FILE]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the shapes and the programs of the benchmarks of training

import ours  # fits the process to the machine before JAX starts

# isort: split
import gzip
import itertools

import jax
import shapes
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe
from sbp_jax.config import Execution, MeshShape, TextSet, Tokenizer
from sbp_jax.data.rows import RowSource
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import bind, to_compute_dtype
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.stages import score, texts, tokenize, window
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training.batches import to_device
from sbp_jax.training.loss import weighted_loss
from sbp_jax.training.step import InMesh, Setup, new_state

CORPUS = ours.Path(__file__).parents[1] / "data/wikipedia_vital/documents.jsonl.gz"
SHAPES = {"16M": shapes.QWEN3_16M, "1B": ours.ONE_BILLION}
CHARACTERS = 4.5  # of a token, about, for the size of the set


def main(rounds: int, rows: int = 160, shape: str = "16M", corpus: Path = CORPUS) -> None:
    """Prints targets/s of each and the ratio to the forward pass."""
    sizes = SHAPES[shape]
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(epath.Path(folder), sizes, dtype, rows, corpus)
        timed: dict[str, Callable[[], int]] = {"forward": bench.forward, "rows": bench.rows, "files": bench.files}
        for work in timed.values():
            work()
        rates: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds):
            for name, work in timed.items():
                start = time.perf_counter()
                targets = work()
                rates[name].append(targets / (time.perf_counter() - start))
        size = f"{bench.count} rows of {sizes['context']}, {bench.made.stats['targets']:,} targets"
    device, medians = jax.devices()[0].device_kind, {name: statistics.median(found) for name, found in rates.items()}
    print(f"\nTargets/s of scoring text, {shape} Qwen3, {dtype}, {device}, {size} (ratio: wanted at least 0.9)")
    print(f"{'':<10}{'min':>12}{'median':>12}{'max':>12}{'/forward':>12}")
    for name, values in rates.items():
        numbers = (min(values), medians[name], max(values))
        print(f"{name:<10}" + "".join(f"{x:>12,.0f}" for x in numbers) + f"{medians[name] / medians['forward']:>12.3f}")


class Bench:
    """A random model, a text set in a file and as rows, and the three pieces of work; each gives its targets."""

    def __init__(self, folder: epath.Path, sizes: dict[str, int], dtype: str, rows: int, corpus: Path):
        self._folder, self._runs = folder, itertools.count()
        plain: Setup = ours.set_up(sizes, dtype, Execution(), build_mesh(MeshShape()))
        found = _records(corpus, int(rows * sizes["context"] * CHARACTERS))
        self._set = TextSet("bench", (str(folder / "set.jsonl"),))
        (folder / "set.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
        self._settings = Tokenizer(vocab_size=min(sizes["vocabulary"], 16_384))
        encoder = text_tokenizer.train(found, self._settings)
        self._setup = plain
        self._parameters = new_state(plain, 0).parameters
        trained = self._output("trained")
        for name in huggingface.save(
            trained.path / "final", self._parameters, plain.model, sizes["vocabulary"], sizes["context"], 0
        ):
            with trained.writing(f"final/{name}"):
                pass
        tokenizer = self._output("tokenizer")
        with tokenizer.writing("tokenizer.json") as writing:
            encoder.save(writing.path)
        self._trained, self._tokenizer = trained.finish(), tokenizer.finish()
        self.made = self._rows()
        self.count = len(RowSource(self.made))
        self._forward = self._compiled()
        self._batch = to_device(ours.batch_of(shapes.rows(sizes)), plain.mesh, plain.optimization.batch_rows)

    def forward(self) -> int:
        batches = -(-self.count // self._setup.optimization.batch_rows)
        results = [self._forward(self._parameters, self._batch) for _ in range(batches)]
        jax.block_until_ready(results)
        return batches * self._setup.optimization.batch_rows * self._setup.optimization.context

    def rows(self) -> int:
        return self._score(self.made)

    def files(self) -> int:
        return self._score(self._rows())

    def _score(self, rows: Artifact) -> int:
        given: dict[str, Any] = {"model": self._setup.model, "training": self._setup.optimization}
        score.run(self._output("score"), trained=self._trained, rows=rows, execution=Execution(), **given)
        return int(rows.stats["targets"])

    def _rows(self) -> Artifact:
        given: dict[str, Any] = {"tokenizer": self._tokenizer, "settings": self._settings, "execution": Execution()}
        documents = texts.run(self._output("texts"), texts=self._set, execution=Execution())
        tokens = tokenize.run(self._output("tokens"), documents=documents, **given)
        context = self._setup.optimization.context
        return window.run(
            self._output("rows"), documents=documents, tokens=tokens, context=context, stride=context, **given
        )

    def _output(self, name: str) -> Output:
        return Output(self._folder / f"{name}-{next(self._runs)}", Recipe(name, 1, {}, {}), name)

    def _compiled(self) -> InMesh:
        """The forward pass of `train_step`: the batch's loss and the sum of its nats."""
        setup = self._setup

        def loss(parameters: Any, batch: Any) -> Any:
            decoder = bind(setup.model, setup.vocabulary, to_compute_dtype(setup.model, parameters))
            tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
            hidden = decoder.hidden(tokens[:, :-1], segments, positions, setup.attend, "none", None)
            weights = batch["mask"] / jax.numpy.maximum(batch["mask"].sum(), 1)
            value, nats = weighted_loss(*decoder.unembed(hidden), tokens[:, 1:], weights, setup.vocabulary, 0.0)
            return value, jax.numpy.where(batch["mask"], nats, 0.0).sum()

        return InMesh(jax.jit(loss), setup.mesh)


def _records(corpus: Path, characters: int) -> list[str]:
    """The first texts of a corpus, as many as have about so many characters."""
    found: list[str] = []
    opened = gzip.open(corpus, "rt") if corpus.suffix == ".gz" else corpus.open()
    with opened as lines:
        for line in lines:
            if characters <= 0:
                return found
            found.append(json.loads(line)["text"])
            characters -= len(found[-1])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--shape", choices=SHAPES, default="16M")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    main(**vars(parser.parse_args()))
