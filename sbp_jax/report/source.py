"""An experiment as the Python source of a config file that makes it again."""

import dataclasses
from pathlib import PurePath
from typing import Any

from sbp_jax.config import Execution, Experiment

HEADER = "from sbp_jax.config import *\n\n\ndef get_config() -> Experiment:\n    return "


def to_source(experiment: Experiment) -> str:
    """A config file with every field spelled out, defaults too, so that a later default cannot change it.

    Files keep their names only: where they lie differs from machine to machine. How the work was executed is left
    out, for it does not change the result.
    """
    own, data = experiment.tokenizer.path, experiment.evaluation.data
    texts = tuple(dataclasses.replace(chosen, paths=_names(chosen.paths)) for chosen in experiment.evaluation.texts)
    evaluation = dataclasses.replace(
        experiment.evaluation, texts=texts, data=None if data is None else PurePath(data).name
    )
    placeless = dataclasses.replace(
        experiment,
        corpus=dataclasses.replace(experiment.corpus, paths=_names(experiment.corpus.paths)),
        tokenizer=dataclasses.replace(experiment.tokenizer, path=None if own is None else PurePath(own).name),
        embedding=dataclasses.replace(experiment.embedding, model=PurePath(experiment.embedding.model).name),
        evaluation=evaluation,
    )
    return HEADER + _expression(placeless, 1) + "\n"


def _names(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(PurePath(path).name for path in paths)


def _expression(value: Any, depth: int) -> str:
    """A Python expression for a value, its fields on lines indented by `depth` levels."""
    indent = "    " * (depth + 1)
    if dataclasses.is_dataclass(value):
        named = [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
        kept = [(name, content) for name, content in named if not isinstance(content, Execution)]
        fields = [f"{indent}{name}={_expression(content, depth + 1)},\n" for name, content in kept]
        return f"{type(value).__name__}(\n{''.join(fields)}{'    ' * depth})"
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(entry) for entry in value):
        entries = [f"{indent}{_expression(entry, depth + 1)},\n" for entry in value]
        return f"(\n{''.join(entries)}{'    ' * depth})"
    return repr(value)
