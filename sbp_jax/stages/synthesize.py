"""Stage `synthesize`: the synthesizer continues capped documents, d2 from p(d2 | d1) (SBP, step 3).

A shard in the making keeps a journal of its finished documents, so that a run that was killed generates only those that
are missing. What a document is depends on its request alone, and so not on where a run was interrupted.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Model, Synthesis, Tokenizer
from sbp_jax.data.budget import synthetic
from sbp_jax.data.synthetic import FINISHES, SCHEMA
from sbp_jax.generation import replicas
from sbp_jax.generation.journal import Journal
from sbp_jax.generation.requests import Completion, Request
from sbp_jax.generation.run_requests import RunRequests, model_folder
from sbp_jax.generation.start import start
from sbp_jax.parallel import hosts
from sbp_jax.progress import progress
from sbp_jax.text.tokenizer import load

VERSION = 2
JOURNALS = "journal"


def run(
    output: Output,
    *,
    model: Artifact,
    capped: Artifact,
    oracle: Artifact,
    tokens: Artifact,
    splits: Artifact,
    documents: Artifact,
    tokenizer: Artifact,
    pairs: Artifact | None = None,
    settings: Tokenizer,
    decoder: Model,
    synthesis: Synthesis,
    conditioning: int,
    context: int,
    share: float,
    training_tokens: int | None,
    execution: Execution,
) -> Artifact:
    """Writes as many documents as the arms need before filtering, in shards that are each complete or absent.

    Seeds are taken in passes over all of them (`data/schedule.py`). Several hosts divide the shards.

    Args:
      model: the tuned synthesizer, or the base model where nothing is read; its best checkpoint is used.
      capped: the packed capped stream, for the mean length of a document.
      oracle: the packed oracle stream, for the token budget.
      pairs: the accepted ones; None: documents are written without reading any.
      conditioning: documents that are read at most, the seed among them.
      context: tokens of a prompt and its continuation.
      share: greatest share of synthetic tokens among the arms.

    Raises:
      SbpError: settings out of range, no seed with room behind it, a model that was not tuned on pairs, or one that
        does not fit, is another tokenizer's, or gives no numbers.
    """
    text_tokenizer = load(tokenizer.file("tokenizer.json"), settings)
    folder = model_folder(model, tokenizer, pairs is not None)
    source = RunRequests(synthesis, text_tokenizer, tokens, context)
    if pairs is not None:
        source.condition(splits, pairs, conditioning, output.label)
    total = synthetic(synthesis, share, training_tokens, capped, oracle).documents
    size = synthesis.documents_per_shard
    names = {_name(index): index for index in range(math.ceil(total / size))}
    missing = output.apart(list(names), *hosts.share())
    ranges = {names[name]: range(names[name] * size, min(total, (names[name] + 1) * size)) for name in missing}
    stats = {} if pairs is None else {"seeds": len(source.seeds), **source.left_out}
    if ranges:
        ids = parquet.read(documents, ["id"])["id"]
        lineage: dict[str, Any] = {
            "synthesizer": model.key,
            "step": model.stats.get("best_step"),
            "engine": execution.engine,
        }
        describe = partial(_row, source, ids, lineage)
        own = sum(map(len, ranges.values()))
        with (
            _Shards(output, ranges, source.prompt_tokens) as shards,
            progress(output.label, own, "documents") as counter,
        ):

            def requests(index: int) -> Iterator[Request]:
                counter.skip(shards.open(index))
                yield from map(source.request, shards.missing(index))

            def use(engines: Sequence[replicas.Generator]) -> None:
                for completion in replicas.generate(engines, [requests(index) for index in shards.left()]):
                    row = describe(completion)
                    shards.add(row["ordinal"] // size, row)
                    counter.advance()

            build = partial(start, folder, decoder, text_tokenizer, synthesis.seed, context, execution)
            replicas.backing_off(execution.slots, build, use, lambda line: _say(f"{output.label}: {line}"))
    return output.finish(stats)


class _Shards:
    """The shards that are not there yet, each written when its last document is."""

    def __init__(self, output: Output, ranges: dict[int, range], read: Callable[[list[int]], int]):
        self._output, self._ranges, self._read = output, ranges, read
        self._journals: dict[int, Journal] = {}

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        for journal in self._journals.values():
            journal.close()

    def left(self) -> list[int]:
        return [index for index in self._ranges if not self._output.has(_name(index))]

    def open(self, index: int) -> int:
        """Opens the journal of a shard; returns how many documents an earlier run left in it."""
        if index in self._journals:
            return 0
        journal = self._journals[index] = Journal(self._output.path / JOURNALS / f"part-{index:05d}.jsonl")
        found = len(journal.rows)
        self._finish(index)
        return found

    def missing(self, index: int) -> list[int]:
        """Numbers of the documents of an opened shard that are not there yet."""
        if index not in self._journals:
            return []
        return [number for number in self._ranges[index] if number not in self._journals[index].rows]

    def add(self, index: int, row: dict[str, Any]) -> None:
        self._journals[index].add(row)
        self._finish(index)

    def _finish(self, index: int) -> None:
        journal, numbers = self._journals[index], self._ranges[index]
        if all(number in journal.rows for number in numbers):
            with self._output.writing(_name(index)) as writing:
                _write(writing, [journal.rows[number] for number in numbers], self._read)
            self._journals.pop(index).delete()


def _name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _row(source: RunRequests, ids: pa.ChunkedArray, lineage: dict[str, Any], completion: Completion) -> dict[str, Any]:
    request = completion.request
    row = source.lineage(request)
    seed = row["seed"]
    return row | {
        "ordinal": request.number,
        "id": f"syn-{'self' if seed is None else seed}-{request.number if seed is None else request.sample}",
        "text": source.tokenizer.decode(completion.tokens),
        "seed_id": None if seed is None else ids[seed].as_py(),
        "conditioning_ids": [ids[ordinal].as_py() for ordinal in row["conditioning"]],
        "finish": completion.finish,
        "new_tokens": len(completion.tokens) + (completion.finish == "end"),
        "logprob": completion.logprob,
        **lineage,
    }


def _write(writing: Writing, rows: list[dict[str, Any]], read: Callable[[list[int]], int]) -> None:
    """Writes a shard; its counts of tokens read and written are what it is charged by (`accounting`).

    Args:
      read: gives the tokens of a prompt, from the documents in it.
    """
    parquet.write(writing, pa.Table.from_pylist(rows, SCHEMA))
    prompts, new = [read(row["conditioning"]) for row in rows], [row["new_tokens"] for row in rows]
    squares = sum((before + after) ** 2 for before, after in zip(prompts, new, strict=True))
    writing.stats = {"documents": len(rows), "new_tokens": sum(new), "prompt_tokens": sum(prompts)}
    writing.stats |= {"squared_tokens": squares}
    writing.stats |= {f"finish_{name}": sum(row["finish"] == name for row in rows) for name in FINISHES}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
