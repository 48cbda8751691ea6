"""Models to and from other people: finished ones as Hugging Face folders, and theirs as fields of a config."""

import dataclasses
import os
import shlex
from collections.abc import Iterable
from typing import Any

from etils import epath

from sbp_jax.artifacts import Artifact
from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text import tokenizer as text_tokenizer


def choose(name: str, models: Iterable[str]) -> str:
    """The stage instance that a user means: its own name, or an arm's for the first of its seeds.

    Raises:
      SbpError: there is no such model.
    """
    known = list(models)
    chosen = [model for model in known if name in (model, model.removeprefix("train-").rpartition("-")[0])]
    if not chosen:
        raise SbpError(f"there is no model {name}; there are {', '.join(known)}, and each arm by its name")
    return chosen[0]


def export(trained: Artifact, tokenizer: Artifact, experiment: Experiment, options: Any) -> list[epath.Path]:
    """Writes a finished model with its tokenizer as a folder that transformers loads.

    Args:
      trained: the artifact of an arm or of the synthesizer.
      options: `to`, a folder that is empty or not there yet; `checkpoint`, final or best; `dtype` and `layout` as
        `huggingface.save` takes them.

    Returns:
      The files.

    Raises:
      SbpError: the folder holds something already, or the model does not fit the layout.
    """
    to = epath.Path(options.to).expanduser()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise SbpError(f"{to} is not empty; name a new folder for the model")
    source, file = trained.folder(options.checkpoint), tokenizer.file(huggingface.TOKENIZER)
    found, settings = huggingface.inspect(source), experiment.tokenizer
    parameters = huggingface.load(source, found.model, found.vocabulary, build_mesh(experiment.execution.mesh))
    sizes = found.model, found.vocabulary, found.context, text_tokenizer.load(file, settings).end_of_document
    names = huggingface.save(to, parameters, *sizes, dtype=options.dtype, layout=options.layout)
    names += huggingface.save_tokenizer(to, file, settings.end_of_document, found.context)
    return [to / name for name in names]


def fields(folder: str) -> dict[str, dict[str, Any]]:
    """The fields of a config whose base model is the one in a folder, by section.

    Raises:
      SbpError: the folder holds no model that can be read, or no tokenizer.
    """
    place = epath.Path(os.path.abspath(os.path.expanduser(folder)))
    checkpoint, path = huggingface.inspect(place), place / huggingface.TOKENIZER
    if not path.exists():
        raise SbpError(f"{path} is missing; save the model's tokenizer there with `save_pretrained` of transformers")
    tokenizer = {"path": str(path)}
    end = checkpoint.end_of_document
    token = None if end is None else text_tokenizer.read(path).id_to_token(end)
    if token is not None:
        tokenizer["end_of_document"] = token
    model = dataclasses.asdict(checkpoint.model)
    return {"model": model, "tokenizer": tokenizer, "tuning": {"base": str(place)}}


def assignments(sections: dict[str, Any]) -> str:
    """Fields as options of `sbp run`, quoted for the shell."""
    return " \\\n".join(f"--set {shlex.quote(line)}" for line in _lines(sections, ""))


def _lines(sections: dict[str, Any], prefix: str) -> list[str]:
    lines = []
    for name, value in sections.items():
        lines += _lines(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}={value}"]
    return lines
