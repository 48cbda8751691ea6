"""Data of harness tasks in local files, for machines without a network.

A file holds JSON Lines, plain or `.gz`, and is named after its task. Its records have the fields of the task's own data
set, so that prompts, answers and metrics are the harness's; for some tasks a shorter layout is understood too, and
turned into those fields. A field `split` says which split of the data set a record is of (few-shot examples come from
train or dev); without it, it is of the one that is asked.
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from sbp_jax.config import NOT_IN_RECIPE
from sbp_jax.errors import SbpError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
MMLU = "mmlu"
Record = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One task to ask a model.

    Attributes:
      task: name of a task, group or tag of the harness.
      fewshot: examples before each question; None: the task's own number.
      limit: items that are asked; None: all.
      data: folder of local files; in a recipe by their content.
    """

    task: str
    fewshot: int | None = None
    limit: int | None = None
    data: str | None = field(default=None, metadata=NOT_IN_RECIPE)


@dataclass(frozen=True)
class Layout:
    """What a record of a task is.

    Attributes:
      source: the data set of the Hugging Face hub whose fields these are.
      fields: of that data set, those that are needed.
      short: fields of the shorter layout.
      full: makes the data set's record of one in the shorter layout.
      stems: further names that the file may have.
    """

    source: str
    fields: tuple[str, ...]
    short: tuple[str, ...] = ()
    full: Callable[[Record], Record] | None = None
    stems: tuple[str, ...] = ()

    def __str__(self) -> str:
        own = f"{', '.join(self.fields)} (as in {self.source})"
        return f"{own}, or {', '.join(self.short)}" if self.short else own


def _without(text: str, before: str, after: str = "") -> str:
    return text.removeprefix(before).removesuffix(after)


def _lambada(record: Record) -> Record:
    return {"text": f"{record['context']} {record['continuation']}"}


def _arc(record: Record) -> Record:
    labels = [chr(ord("A") + number) for number in range(len(record["choices"]))]
    return {
        "question": _without(record["query"], "Question: "),
        "choices": {"text": record["choices"], "label": labels},
        "answerKey": labels[record["gold"]],
    }


def _winogrande(record: Record) -> Record:
    options = record["context_options"]
    shared = os.path.commonprefix(options)
    shared = shared[: shared.rfind(" ") + 1]  # the options differ in whole words
    shared = "" if "_" in shared else shared
    return {
        "sentence": f"{shared}_ {record['continuation']}",
        **{f"option{number}": option[len(shared) :] for number, option in enumerate(options, start=1)},
        "answer": str(record["gold"] + 1),
    }


def _piqa(record: Record) -> Record:
    first, second = record["choices"]
    goal = _without(record["query"], "Question: ", "\n")
    return {"goal": goal, "sol1": first, "sol2": second, "label": record["gold"]}


def _triviaqa(record: Record) -> Record:
    question = _without(record["context"], "Question: ", "\nAnswer:")
    return {"question": question, "answer": {"value": record["answer"], "aliases": record["aliases"]}}


_CHOICE = ("query", "choices", "gold")
_ARC = ("question", "choices", "answerKey")
LAYOUTS = {
    "lambada_openai": Layout("EleutherAI/lambada_openai", ("text",), ("context", "continuation"), _lambada),
    "arc_easy": Layout("allenai/ai2_arc, ARC-Easy", _ARC, _CHOICE, _arc),
    "arc_challenge": Layout("allenai/ai2_arc, ARC-Challenge", _ARC, _CHOICE, _arc),
    "winogrande": Layout(
        "allenai/winogrande, winogrande_xl",
        ("sentence", "option1", "option2", "answer"),
        ("context_options", "continuation", "gold"),
        _winogrande,
    ),
    "piqa": Layout("baber/piqa", ("goal", "sol1", "sol2", "label"), _CHOICE, _piqa),
    "triviaqa": Layout(
        "mandarjoshi/trivia_qa, rc.nocontext",
        ("question", "answer"),
        ("context", "answer", "aliases"),
        _triviaqa,
        ("triviaqa_sm_sub",),
    ),
    "sciq": Layout(
        "allenai/sciq", ("support", "question", "distractor1", "distractor2", "distractor3", "correct_answer")
    ),
    "webqs": Layout("stanfordnlp/web_questions", ("question", "answers")),
    MMLU: Layout("cais/mmlu, all", ("question", "choices", "answer", "subject")),
}


def plain(task: str) -> str:
    """The name of a task as it may stand in the name of a folder."""
    return re.sub(r"[^\w.+-]", "_", task)


def layout(task: str) -> Layout | None:
    """The layout of a task's records, where it is known here."""
    return LAYOUTS.get(task) or (LAYOUTS[MMLU] if task.startswith(f"{MMLU}_") else None)


def files(asked: Asked) -> list[epath.Path]:
    """The local files that a task, or the tasks of a group, may read; none where there are none.

    Raises:
      SbpError: the folder is missing.
    """
    if asked.data is None:
        return []
    folder = epath.Path(asked.data).expanduser()
    if not folder.is_dir():
        raise SbpError(f"there is no folder {asked.data}; set evaluation.data to the one that holds the tasks' files")
    stems = _stems(asked.task)
    return sorted(
        file
        for file in folder.iterdir()
        if (stem := _stem(file)) is not None and (stem in stems or stem.startswith(f"{asked.task}_"))
    )


def file_of(task: str, among: Sequence[epath.Path]) -> epath.Path | None:
    """The file of one task, named after it or as its layout allows."""
    by_stem = {_stem(file): file for file in among}
    return next((by_stem[stem] for stem in _stems(task) if stem in by_stem), None)


def records(file: epath.Path, task: str, subject: str | None) -> list[Record]:
    """The records of a task in its data set's own fields.

    Args:
      subject: of MMLU, whose tasks may share a file.

    Raises:
      SbpError: the file cannot be read, or a record lacks a field; no record is left.
    """
    known = layout(task)
    found = []
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SbpError(f"{file}, line {number} is not JSON ({error}); mend or remove it") from error
        if not isinstance(record, dict):
            raise SbpError(f"{file}, line {number} is no JSON object; give one record a line")
        found.append(record if known is None else _full(record, known, f"{file}, line {number}"))
    if known is LAYOUTS[MMLU] and _stem(file) == MMLU:
        found = [record for record in found if record["subject"] == subject]
        if not found:
            raise SbpError(f"{file} has no record whose subject is {subject}, so {task} cannot be asked; add some")
    if not found:
        raise SbpError(f"{file} holds no record; give one JSON object a line")
    return found


def _full(record: Record, known: Layout, where: str) -> Record:
    if all(name in record for name in known.fields) and not (known.short and set(known.short) <= record.keys()):
        return record
    if known.full is None or not all(name in record for name in known.short):
        missing = [name for name in known.fields if name not in record]
        raise SbpError(f"{where} lacks {', '.join(missing)}; a record has the fields {known}")
    try:
        return known.full(record) | {name: record[name] for name in ("split",) if name in record}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SbpError(f"{where} has a field of the wrong kind ({error}); a record has the fields {known}") from error


def _stem(file: epath.Path) -> str | None:
    return next((file.name.removesuffix(suffix) for suffix in SUFFIXES if file.name.endswith(suffix)), None)


def _stems(task: str) -> list[str]:
    known = layout(task)
    shared = [MMLU] if known is LAYOUTS[MMLU] else []
    return [task, *(known.stems if known else ()), *shared]


def _lines(file: epath.Path) -> list[bytes]:
    try:
        content = file.read_bytes()
        return (gzip.decompress(content) if file.name.endswith(".gz") else content).splitlines()
    except (OSError, EOFError) as error:
        raise SbpError(f"{file} cannot be read ({error}); copy it again, whole") from error
