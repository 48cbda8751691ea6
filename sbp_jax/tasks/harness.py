"""lm-eval's own tasks, with their data from local files where there are some. Imports the harness when it is used."""

import difflib
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from etils import epath

from sbp_jax.errors import SbpError
from sbp_jax.tasks import local
from sbp_jax.tasks.local import Asked

SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}  # its own
BOOTSTRAPS = 1000  # resamples of a standard error that has no formula
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_VARIABLE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)


def version() -> str | None:
    """Of lm-eval; None: it is not installed."""
    return importlib.metadata.version("lm-eval") if importlib.util.find_spec("lm_eval") else None


def ask(model: Any, asked: Asked) -> dict[str, Any]:
    """What the harness finds out about a model on a task: its results, with every item and, as "objects", the tasks.

    Args:
      model: an `lm_eval.api.model.LM`.

    Raises:
      SbpError: lm-eval is not installed, there is no such task, or its data cannot be had.
    """
    prepare()
    from lm_eval import evaluator

    tasks = _load(asked)
    for name, task in _by_name(tasks).items():
        _demand_examples(name, task, asked.fewshot)
    with redirect_stdout(io.StringIO()):  # which belongs to what is asked for, such as JSON
        found = evaluator.simple_evaluate(
            model,
            tasks=tasks,
            num_fewshot=asked.fewshot,
            limit=asked.limit,
            bootstrap_iters=BOOTSTRAPS,
            task_manager=_manager(asked.task),
            **SEEDS,
        )
    assert found is not None
    return found | {"objects": _by_name(tasks)}


def known(names: Sequence[str]) -> None:
    """Raises `SbpError` for a name that is no task, group or tag of the harness."""
    for name in names:
        if name not in (index := _manager(name).task_index):
            near = difflib.get_close_matches(name, index, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`sbp evaluate --list` shows those with local files"
            raise SbpError(f"lm-eval {version()} has no task {name}; {hint}")


def prepare() -> None:
    """Settles what the harness reads once; has to come before anything imports it.

    Raises:
      SbpError: it is not installed.
    """
    if version() is None:
        raise SbpError("tasks are asked by lm-eval, which is not installed: pip install -r requirements-eval.txt")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the terminal shows one bar, ours
    os.environ["DISABLE_MULTIPROC"] = "1"  # it would fork a process that runs JAX
    for name in ("lm_eval", "lm-eval", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


@lru_cache(maxsize=64)
def _manager(name: str | None = None) -> Any:
    """The harness's index of its tasks: of those in the folders that define this one, or of all.

    All of them are 15,000 files to parse, ten seconds and more.
    """
    prepare()
    from lm_eval import tasks

    if name is None:
        return tasks.TaskManager()
    root, line = Path(tasks.__file__).parent, r"""^["\s]*(-|task"?:|group"?:|tag"?:).*\b%s\b"""

    def mentioned(word: str) -> set[str]:
        pattern = re.compile((line % re.escape(word)).encode(), re.MULTILINE)
        return {family for family, texts in _families(root).items() if any(pattern.search(text) for text in texts)}

    for family in sorted(mentioned(name)):
        manager = tasks.TaskManager(include_path=[root / family], include_defaults=False)
        index = manager.task_index
        if name in index:
            met: set[str] = set()
            whole = all(leaf in index for leaf in _leaves(index, name, met))
            tags = [tag for tag in met if index[tag].kind.name == "TAG"]
            if whole and all(mentioned(tag) == {family} for tag in tags):
                return manager
            break
    return _manager()


@lru_cache(maxsize=1)
def _families(root: Path) -> dict[str, list[bytes]]:
    """The files that define tasks, by the folder of the harness that they lie in."""
    families: dict[str, list[bytes]] = {}
    for file in root.glob("*/**/*.yaml"):
        families.setdefault(file.relative_to(root).parts[0], []).append(file.read_bytes())
    return families


def _load(asked: Asked) -> list[Any]:
    """The tasks and groups of a name, their data from local files where there are some."""
    known([asked.task])
    manager = _manager(asked.task)
    there = local.files(asked)
    index = dict(manager.task_index)
    names = _leaves(index, asked.task)
    for name in names:
        file = local.file_of(name, there)
        if file is not None and index[name].kind.name == "TASK":
            manager.task_index[name] = _from_file(index[name], file)
    try:
        loaded = manager.load([asked.task])
    except SbpError:
        raise
    except Exception as error:  # whatever a data set's loader raises where the network or a package is missing
        raise SbpError(_no_data(asked, index, names, error)) from error
    finally:
        manager.task_index.update(index)
    inside = {name for children in loaded["group_map"].values() for name in children}
    every = {**loaded["tasks"], **loaded["groups"]}
    return [task for name, task in every.items() if name not in inside]


def _leaves(index: dict[str, Any], name: str, met: set[str] | None = None) -> list[str]:
    """The tasks that a task, a tag or a group is of.

    Args:
      met: receives all names on the way that there are.
    """
    entry = index.get(name)
    if entry is None:
        return [name]
    if met is not None:
        met.add(name)
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return [name]
    members = entry.cfg.get("task") or []
    inner = [member if isinstance(member, str) else member.get("task") or member.get("group") for member in members]
    return [leaf for member in inner if isinstance(member, str) for leaf in _leaves(index, member, met)]


def _from_file(entry: Any, file: epath.Path) -> Any:
    """The entry of a task with the harness's own config, but for where its records come from."""
    import datasets
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(entry.yaml_path, resolve_func=True)
    asked = config.get("test_split") or config.get("validation_split") or config.get("training_split")
    splits: dict[str, list[local.Record]] = {}
    for record in local.records(file, entry.name, config.get("dataset_name")):
        splits.setdefault(record.pop("split", asked), []).append(record)
    if asked not in splits:
        raise SbpError(f"{file} has no record of the split {asked}, which {entry.name} asks; there are {list(splits)}")
    made = {split: datasets.Dataset.from_list(found) for split, found in splits.items()}

    def dataset(**_: Any) -> dict[str, Any]:
        return made

    absent: dict[str, str | None] = {name: None for name in SPLITS if config.get(name) not in (None, *splits)}
    left = config | absent
    if not (left.get("training_split") or left.get("fewshot_split")):
        # Examples are other questions. The harness leaves out the one that is asked where both splits have these names.
        absent |= {"fewshot_split": asked, "test_split": asked}
    return replace(entry, yaml_path=None, cfg=config | absent | {"custom_dataset": dataset, "dataset_kwargs": None})


def _no_data(asked: Asked, index: dict[str, Any], names: Sequence[str], error: Exception) -> str:
    """What is missing, and what would help."""
    name = names[0] if names else asked.task
    config = (index[name].cfg if name in index else None) or {}
    path, part = config.get("dataset_path"), config.get("dataset_name")
    source = ", ".join(str(value) for value in (path, part) if value) or "its data set"
    layout = local.layout(name)
    fields = str(layout) if layout else ", ".join(_fields(config)) or f"those of {source}"
    also = f" (also {', '.join(layout.stems)}.jsonl)" if layout and layout.stems else ""
    where = f"{asked.data} has no {name}.jsonl or {name}.jsonl.gz{also}" if asked.data else "no --data folder is given"
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return (
        f"the data of {name} is not there: {where}, and {source} could not be loaded ({first}). Go where there is a"
        f" network, or put {name}.jsonl into the --data folder, a record a line with the fields {fields}"
    )


def _fields(config: dict[str, Any]) -> list[str]:
    """Names of the record that the templates of a task use, as far as templates say it."""
    from jinja2 import Environment, TemplateError, meta

    found: set[str] = set()
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        template = config.get(name)
        if isinstance(template, str) and _VARIABLE.search(template):
            try:
                found |= meta.find_undeclared_variables(Environment().parse(template))
            except TemplateError:  # a filter of the harness's own
                continue
        elif isinstance(template, str) and re.fullmatch(r"\w+", template):
            found.add(template)
    return sorted(found)


def _demand_examples(name: str, task: Any, fewshot: int | None) -> None:
    """Raises `SbpError` where there are fewer examples than are to be shown before a question."""
    own, sampler = task.get_config("num_fewshot"), getattr(task, "sampler", None)
    wanted = own if fewshot is None or own == 0 else fewshot  # the harness leaves a task's own 0 as it is
    if sampler is None or not wanted:
        return
    there = len(sampler.df) - (task.get_config("fewshot_split") == task.get_config("test_split"))
    if wanted > there:
        raise SbpError(
            f"{name} shows {wanted} examples before each question, and its data has {there} to show; add records with"
            ' "split": "train", or lower fewshot'
        )


def _by_name(tasks: Sequence[Any]) -> dict[str, Any]:
    """All single tasks, those of groups too."""
    found: dict[str, Any] = {}
    for task in tasks:
        inner = task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task]
        found |= {one.task_name: one for one in inner}
    return found
