"""Stage `judge`: a language model behind an OpenAI-compatible endpoint is asked about real and synthetic documents.

It is in the graph only where `quality.judge.url` names an endpoint; otherwise nothing is sent anywhere. Real documents
are judged by the same prompts: what the judge says of them is what its word is worth. Every question and answer is
kept.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Judge
from sbp_jax.generation.journal import Journal
from sbp_jax.progress import progress
from sbp_jax.quality import samples
from sbp_jax.quality.documents import Sources, collect
from sbp_jax.quality.endpoint import ask
from sbp_jax.quality.measures import JUDGED
from sbp_jax.quality.questions import QUESTIONS, Question, digest, filled, prompt, verdict
from sbp_jax.scoring.share import share

VERSION = 1
JOURNAL = "answers.jsonl"
SCHEMA = pa.schema(
    {
        "ordinal": pa.int64(),  # number of the prompt
        "question": pa.string(),
        "prompt_hash": pa.string(),
        "group": pa.string(),
        "document": pa.int64(),  # ordinal in `documents`, `synthesized` or `synthetic`
        "id": pa.string(),
        "seed": pa.int64(),
        "prompt": pa.string(),  # as it was sent
        "answer": pa.string(),
        "verdict": pa.string(),  # null where the answer could not be read
        "finish": pa.string(),
        "model": pa.string(),  # as the endpoint names it
        "attempts": pa.int32(),
    }
)


@dataclass(frozen=True)
class _Asked:
    """One question about one document; equal prompts have one number, and are sent once."""

    number: int
    question: Question
    row: dict[str, Any]  # of the document
    prompt: str


def run(
    output: Output,
    *,
    synthesized: Artifact,
    synthetic: Artifact,
    documents: Artifact,
    splits: Artifact,
    pairs: Artifact,
    judge: Judge,
    prompts: Mapping[str, str],
    execution: Execution,
) -> Artifact:
    """Writes `judged.json`, the shares with their intervals, and a Parquet row for each question.

    An answer goes to a journal as soon as it is there; a run that was killed or found the endpoint down asks only what
    is still open. Answers that cannot be read are counted, and in no share.

    Args:
      pairs: of related documents, the reference.
      prompts: the hash of each prompt, for the recipe.

    Raises:
      SbpError: the endpoint refuses a question, or gives no answer however often it is asked.
    """
    chosen = collect(Sources(documents, splits, pairs, synthesized, synthetic), judge.documents)
    asked = _questions(chosen, documents, judge)
    journal = Journal(output.path / JOURNAL)
    try:
        _ask_all(output.label, asked, judge, journal)
    finally:
        journal.close()
    table = pa.Table.from_pylist([_row(one) | journal.rows[one.number] for one in asked], SCHEMA)

    def write(writing: Writing) -> None:
        parquet.write(writing, table)

    output.shard(0, ".parquet", write)
    with output.writing(JUDGED) as writing:
        writing.path.write_text(json.dumps(summary(table, judge), indent=1, ensure_ascii=False))
    journal.delete()
    unreadable = table["verdict"].null_count
    return output.finish({"questions": table.num_rows, "unreadable": unreadable})


def _questions(chosen: pa.Table, documents: Artifact, judge: Judge) -> list[_Asked]:
    """Every question about every document that it is about; one about a pair only where there is a seed."""
    rows = chosen.to_pylist()
    seeds = chosen["seed"].drop_null().unique().sort().to_numpy()
    found = samples.rows_at(documents, seeds, ["text"])["text"].to_pylist() if len(seeds) else []
    texts = dict(zip(seeds.tolist(), found, strict=True))
    asked: list[_Asked] = []
    numbers: dict[str, int] = {}
    for question in QUESTIONS:
        needs_seed = "{seed}" in prompt(question.name)
        for row in rows:
            if row["group"] not in question.groups or (needs_seed and row["seed"] is None):
                continue
            text = filled(question.name, row["text"], texts.get(row["seed"]), judge.characters)
            asked.append(_Asked(numbers.setdefault(text, len(numbers)), question, row, text))
    return asked


def _ask_all(label: str, asked: Sequence[_Asked], judge: Judge, journal: Journal) -> None:
    """Asks what is open, `at_once` questions at a time; after a failure those under way are kept."""
    open_ones = {one.number: one for one in asked if one.number not in journal.rows}
    left = iter(open_ones.values())
    with (
        progress(label, len(open_ones) + len(journal.rows), "questions") as counter,
        ThreadPoolExecutor(judge.at_once, thread_name_prefix="judge") as threads,
    ):
        counter.skip(len(journal.rows))
        pending: dict[Future[dict[str, Any]], _Asked] = {}
        failure: BaseException | None = None
        while True:
            while failure is None and len(pending) < judge.at_once and (one := next(left, None)) is not None:
                pending[threads.submit(_answered, one, judge)] = one
            if not pending:
                break
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                del pending[future]
                if (error := future.exception()) is not None:
                    failure = failure or error
                    continue
                journal.add(future.result())
                counter.advance()
        if failure is not None:
            raise failure


def _answered(one: _Asked, judge: Judge) -> dict[str, Any]:
    answer = ask(judge, one.prompt)
    return {
        "ordinal": one.number,
        "answer": answer.text,
        "verdict": verdict(one.question, answer.text),
        "finish": answer.finish,
        "model": answer.model,
        "attempts": answer.attempts,
    }


def _row(one: _Asked) -> dict[str, Any]:
    return {
        "question": one.question.name,
        "prompt_hash": digest(one.question.name),
        "group": one.row["group"],
        "document": one.row["ordinal"],
        "id": one.row["id"],
        "seed": one.row["seed"],
        "prompt": one.prompt,
    }


def summary(table: pa.Table, judge: Judge) -> dict[str, Any]:
    """The shares of bad verdicts, by question and kind of documents."""
    told = []
    for question in QUESTIONS:
        rows = []
        for group in question.groups:
            own = table.filter(pc.and_(pc.equal(table["question"], question.name), pc.equal(table["group"], group)))
            verdicts = own["verdict"].drop_null().to_pylist()
            row = {"group": group, "documents": own.num_rows, "unreadable": own["verdict"].null_count}
            names = (question.measure, f"{question.measure}_low", f"{question.measure}_high")
            found = share(verdicts.count(question.bad), len(verdicts)) if verdicts else None
            values = (None, None, None) if found is None else (found.value, found.low, found.high)
            rows.append(row | dict(zip(names, values, strict=True)))
        told.append(
            {
                "question": question.name,
                "measure": question.measure,
                "label": question.label,
                "definition": question.definition,
                "unit": "share",
                "better": "smaller",
                "prompt": prompt(question.name),
                "prompt_hash": digest(question.name),
                "rows": rows,
            }
        )
    return {"model": judge.model, "answered_by": sorted(set(table["model"].to_pylist())), "questions": told}
