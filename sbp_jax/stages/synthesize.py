"""Stage `synthesize`: the synthesizer continues capped documents, d2 from p(d2 | d1) (SBP, step 3).

A shard in the making keeps a journal of its finished documents, so that a run that was killed generates only those that
are missing. What a document is depends on its request alone, and so not on where a run was interrupted.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Model, Synthesis, Tokenizer
from sbp_jax.data.budget import training_tokens as token_budget
from sbp_jax.data.groups import Partners, reading
from sbp_jax.data.schedule import Schedule
from sbp_jax.data.splits import members
from sbp_jax.data.synthetic import FINISHES, SCHEMA
from sbp_jax.errors import SbpError
from sbp_jax.generation import replicas
from sbp_jax.generation.journal import Journal
from sbp_jax.generation.requests import Completion, Request, Sampling
from sbp_jax.generation.start import start
from sbp_jax.model import huggingface
from sbp_jax.progress import progress
from sbp_jax.text.template import prompt
from sbp_jax.text.tokenizer import TextTokenizer, load

VERSION = 2
LEAST_ROOM = 32  # new tokens that must fit behind a prompt
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
    folder = _model_folder(model, tokenizer, pairs is not None)
    source = _Source(synthesis, text_tokenizer, tokens, context)
    if pairs is not None:
        source.condition(splits, pairs, conditioning, output.label)
    mean_length = min(capped.stats["targets"] / capped.stats["documents"], synthesis.max_new_tokens)
    total = math.ceil(share * token_budget(training_tokens, oracle) * synthesis.oversample / mean_length)
    size = synthesis.documents_per_shard
    names = {_name(index): index for index in range(math.ceil(total / size))}
    missing = output.apart(list(names), jax.process_index(), jax.process_count())
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
        with _Shards(output, ranges) as shards, progress(output.label, own, "documents") as counter:

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


class _Source:
    """The requests of a run by their numbers."""

    def __init__(self, synthesis: Synthesis, tokenizer: TextTokenizer, tokens: Artifact, context: int):
        self._synthesis, self.tokenizer, self._context = synthesis, tokenizer, context
        self._records = arrayrecord.source(tokens)
        self._sampling = Sampling(synthesis.temperature, synthesis.top_p, synthesis.top_k)
        self.seeds, self.left_out = np.empty(0, np.int64), {"seeds_too_long": 0, "seeds_empty": 0}
        self.partners: Partners | None = None

    def condition(self, splits: Artifact, pairs: Artifact, conditioning: int, label: str) -> None:
        """Has documents read before others are written: capped ones that leave room to write, and their partners."""
        capped = members(splits, "capped")
        lengths = np.array([len(self._records[ordinal]) // 4 for ordinal in capped.tolist()], np.int64)
        fits = lengths + 2 + LEAST_ROOM <= self._context
        self.seeds = capped[fits & (lengths > 0)]
        self.left_out["seeds_too_long"] = int(np.count_nonzero(~fits))
        self.left_out["seeds_empty"] = int(np.count_nonzero(lengths == 0))
        if len(self.seeds) == 0:
            raise SbpError(
                f"{label}: none of the {len(capped):,} capped documents leaves room for {LEAST_ROOM} new tokens"
                f" in a context of {self._context}; raise tuning.context"
            )
        self._schedule = Schedule(self.seeds, self._synthesis.samples, self._synthesis.seed)
        self.partners = Partners(pairs, conditioning)

    def request(self, number: int) -> Request:
        end, separator = self.tokenizer.end_of_document, self.tokenizer.separator
        if self.partners is None:
            tokens = prompt([], end, separator)
            return Request(number, -1 - number, 0, tokens, self._limit(tokens), self._sampling)
        seed, sample = self._schedule.request(number)
        read = [self._tokens(ordinal) for ordinal in self.read(seed, sample)]
        tokens = prompt(read, end, separator)
        return Request(number, seed, sample, tokens, self._limit(tokens), self._sampling)

    def read(self, seed: int, sample: int) -> list[int]:
        """Ordinals of the documents that are read for one sample of a seed, in their order."""
        assert self.partners is not None
        further = self.partners.of(seed, sample)
        room = self._context - self._synthesis.max_new_tokens - len(self._tokens(seed)) - 2
        return reading(seed, further, [len(self._tokens(ordinal)) for ordinal in further], room)

    def _tokens(self, ordinal: int) -> np.ndarray:
        return np.frombuffer(self._records[ordinal], "<i4")

    def _limit(self, tokens: np.ndarray) -> int:
        return min(self._synthesis.max_new_tokens, self._context - len(tokens))

    def lineage(self, request: Request) -> dict[str, Any]:
        """What a document was made from, and how."""
        seed = request.ordinal if self.partners is not None else None
        return {
            "seed": seed,
            "conditioning": [] if seed is None else self.read(seed, request.sample),
            "similarity": None if seed is None or self.partners is None else self.partners.similarity(seed),
            "sample": request.sample,
            "key": f"{self._synthesis.seed}:{request.ordinal}:{request.sample}",
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "top_k": request.sampling.top_k,
            "max_new_tokens": request.limit,
        }


class _Shards:
    """The shards that are not there yet, each written when its last document is."""

    def __init__(self, output: Output, ranges: dict[int, range]):
        self._output, self._ranges = output, ranges
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
                _write(writing, [journal.rows[number] for number in numbers])
            self._journals.pop(index).delete()


def _name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _model_folder(model: Artifact, tokenizer: Artifact, conditioned: bool) -> Any:
    """The folder of the model, once it is one that can do what is asked.

    Raises:
      SbpError: a model that reads documents without having been tuned to, or of another tokenizer.
    """
    if conditioned and model.recipe.get("stage") != "tune":
        raise SbpError(
            f"{model.path} was trained by {model.recipe.get('stage')}, not tuned on pairs: it does not know what the"
            " separator means; generate with the model of stage tune"
        )
    folder = model.folder("best")
    theirs = folder / huggingface.TOKENIZER
    if theirs.exists() and theirs.read_bytes() != tokenizer.file("tokenizer.json").read_bytes():
        raise SbpError(f"{theirs} is not the tokenizer of this run; use the tokenizer of the model")
    return folder


def _row(source: _Source, ids: pa.ChunkedArray, lineage: dict[str, Any], completion: Completion) -> dict[str, Any]:
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


def _write(writing: Writing, rows: list[dict[str, Any]]) -> None:
    parquet.write(writing, pa.Table.from_pylist(rows, SCHEMA))
    writing.stats = {"documents": len(rows), "new_tokens": sum(row["new_tokens"] for row in rows)}
    writing.stats |= {f"finish_{name}": sum(row["finish"] == name for row in rows) for name in FINISHES}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
