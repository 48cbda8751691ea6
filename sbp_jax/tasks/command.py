"""`sbp evaluate`: its options, and what it prints. Nothing heavy is imported before that."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sbp_jax.errors import SbpError
from sbp_jax.tasks import local

if TYPE_CHECKING:
    from sbp_jax.artifacts import Artifact

HELP = "score finished arms, or any model in a Hugging Face folder, on tasks of lm-eval and on held-out text"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a config file, such as configs/quickstart.py; or give --folder")
    parser.add_argument("--folder", metavar="FOLDER", help="a Hugging Face folder to score instead of arms")
    text = "of lm-eval, such as lambada_openai,arc_easy (default: what config.evaluation names, texts included)"
    parser.add_argument("--tasks", metavar="TASK,...", help=text)
    parser.add_argument(
        "--model", action="append", metavar="ARM", help="an arm, or one run of it such as sbp-0; may be repeated"
    )
    parser.add_argument("--fewshot", type=int, metavar="N", help="examples before each question (default: the task's)")
    parser.add_argument("--limit", type=int, metavar="N", help="items of a task that are asked (default: all)")
    text = "folder of local task files; without a file there a task loads its data as the harness does"
    parser.add_argument("--data", metavar="FOLDER", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list", action="store_true", help="list the tasks with local files, and what these look like")


def run(options: argparse.Namespace, pipeline_of: Callable[[argparse.Namespace], Any], say: Callable) -> None:
    """Scores what is asked for and not done yet, and prints all of it.

    Args:
      pipeline_of: makes the pipeline of the options.
      say: receives a line for each stage instance made.

    Raises:
      SbpError: options that make no sense, an unknown task or arm, or data that is missing.
    """
    for name, least in (("fewshot", 0), ("limit", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise SbpError(f"--{name} is {value}; it must be at least {least}")
    if options.list:
        _list(options)
    elif options.folder is not None:
        if options.config is not None or options.model:
            raise SbpError("--folder scores one model by itself; leave out the config and --model")
        told = _of_folder(options)
        print(json.dumps(told, indent=1) if options.json else "\n".join(_table({options.folder: told})))
    elif options.config is None:
        raise SbpError("give a config file whose arms are to be scored, or --folder with a model")
    else:
        _of_arms(options, pipeline_of, say)


def _tasks(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in (options.tasks or "").split(",") if name.strip()))


def _of_folder(options: argparse.Namespace) -> list[dict[str, Any]]:
    from sbp_jax.tasks import answers, harness

    names = _tasks(options)
    if not names:
        raise SbpError(
            "--folder needs --tasks, such as --tasks lambada_openai,arc_easy; `sbp evaluate --list` has more"
        )
    harness.prepare()
    harness.known(names)
    from sbp_jax.tasks.lm import DecoderLM

    lm, told = DecoderLM(options.folder), []
    for name in names:
        before = lm.cut
        found = harness.ask(lm, local.Asked(name, options.fewshot, options.limit, options.data))
        told.append(answers.results(found, name, lm.cut - before, harness.version()))
    return told


def _of_arms(options: argparse.Namespace, pipeline_of: Callable[[argparse.Namespace], Any], say: Callable) -> None:
    from sbp_jax.parallel import hosts

    hosts.start()
    pipeline, names = pipeline_of(options), _tasks(options)
    fields = {
        "tasks": ",".join(names) or None,
        **{name: getattr(options, name) for name in ("fewshot", "limit", "data")},
    }
    given = [f"evaluation.{name}={value}" for name, value in fields.items() if value is not None]
    if given:  # kept beside what the config itself asks for, whose artifacts `sbp clean` is to leave
        options.workdir = str(pipeline.workdir)
        options.set = [*options.set, *given, f"name={pipeline.experiment.name}.evaluate"]
        pipeline = pipeline_of(options)
    if pipeline.experiment.evaluation.tasks:
        from sbp_jax.tasks import harness

        harness.known(pipeline.experiment.evaluation.tasks)
    wanted = _wanted(options, pipeline, tasks_alone=bool(names))
    for name in wanted:
        if pipeline.artifact(name) is None:
            ready = all(pipeline.artifact(parent) for parent in pipeline.nodes[name].inputs.values())
            pipeline.run(say if hosts.is_first() else _ignore, **{"only" if ready else "until": name})
    if not hosts.is_first():
        return
    made = {name: pipeline.artifact(name) for name in wanted}
    told: dict[str, list[dict[str, Any]]] = {}
    for name, artifact in made.items():
        told.setdefault(wanted[name], []).append(_told(name, wanted[name], pipeline.nodes[name].stage, artifact))
    if options.json:
        flat = [{"model": model, **one} for model, several in told.items() for one in several]
        print(json.dumps(flat, indent=1))
    else:
        print("\n".join(_table(told)))


def _wanted(options: argparse.Namespace, pipeline: Any, tasks_alone: bool) -> dict[str, str]:
    """Stage instances to make, each with the run that it scores, such as "sbp-0".

    Raises:
      SbpError: an arm that there is not, or is not trained; nothing to score.
    """
    stages = ("ask",) if tasks_alone else ("ask", "score")
    runs = {
        name: node.inputs["trained"].removeprefix("train-")
        for name, node in pipeline.nodes.items()
        if node.stage in stages
    }
    if not runs:
        raise SbpError("there is nothing to score; give --tasks, or name some in config.evaluation")
    there = sorted({run for run in runs.values()} | {run.rpartition("-")[0] for run in runs.values()})
    if unknown := [model for model in options.model or () if model.removeprefix("train-") not in there]:
        raise SbpError(f"there is no arm {', '.join(unknown)}; there are {', '.join(there)}")
    asked = {model.removeprefix("train-") for model in options.model or there}
    runs = {name: run for name, run in runs.items() if asked & {run, run.rpartition("-")[0]}}
    unfinished = sorted({run for run in runs.values() if pipeline.artifact(f"train-{run}") is None})
    finished = {name: run for name, run in runs.items() if run not in unfinished}
    done = {part for run in finished.values() for part in (run, run.rpartition("-")[0])}
    if not finished or (options.model and asked - done):
        raise SbpError(f"{', '.join(unfinished)}: not trained yet in {pipeline.workdir}; run `sbp run` first")
    if unfinished:
        print(f"not trained yet, and left out: {', '.join(unfinished)}", file=sys.stderr)
    return finished


def _told(name: str, run: str, stage: str, artifact: "Artifact") -> dict[str, Any]:
    """What an artifact says, in the shape of `results.json`."""
    if stage == "ask":
        return json.loads(artifact.file("results.json").read_text())
    text = name.removeprefix("score-").removesuffix(run).rstrip("-") or "test"
    metrics = [
        {"metric": metric, "value": artifact.stats[metric], "stderr": None, "chance": None, "higher_is_better": False}
        for metric in ("nats_per_token", "bits_per_byte")
        if metric in artifact.stats
    ]
    items = artifact.stats.get("documents")
    return {"task": text, "tasks": [{"task": text, "items": items, "fewshot": None, "metrics": metrics}]}


def _table(told: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """A line for each task and metric, a column for each model."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for model, several in told.items():
        for one in (task for asked in several for task in asked["tasks"]):
            for metric in one["metrics"]:
                line = cells.setdefault((one["task"], metric["metric"]), {})
                shot, items = one["fewshot"], one["items"]
                line |= {"items": f"{items:,}" if items else "", "n-shot": "" if shot is None else str(shot)}
                line |= {"chance": _shown(metric["metric"], metric["chance"]), model: _value(metric)}
    columns = ["items", "n-shot", "chance", *told]
    heads = ["task", "metric", *columns]
    rows = [[*names, *(line.get(column, "") for column in columns)] for names, line in cells.items()]
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    for row in [heads, *rows]:
        left = "  ".join(text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True))
        yield "  ".join([left, *(text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True))]).rstrip()
    if cut := sum(asked.get("cut", 0) for several in told.values() for asked in several):
        yield f"{cut:,} prompts did not fit the context of the model and were cut from the left"


def _value(metric: dict[str, Any]) -> str:
    shown = _shown(metric["metric"], metric["value"])
    return f"{shown} ± {_shown(metric['metric'], metric['stderr'])}" if metric["stderr"] is not None else shown


def _shown(metric: str, value: float | None) -> str:
    from sbp_jax.scoring.share import METRICS

    if value is None:
        return ""
    return f"{100 * value:.1f}%" if metric.partition(",")[0] in METRICS else f"{value:,.4g}"


def _ignore(line: str) -> None:
    pass


def _list(options: argparse.Namespace) -> None:
    """Prints the tasks whose local files are known, and whether the folder has them."""
    there = (
        {}
        if options.data is None
        else {name: local.files(local.Asked(name, data=options.data)) for name in local.LAYOUTS}
    )
    if options.json:
        told = {
            name: {"fields": layout.fields, "short": layout.short, "files": [str(file) for file in there.get(name, [])]}
            for name, layout in local.LAYOUTS.items()
        }
        print(json.dumps(told, indent=1))
        return
    width = max(map(len, local.LAYOUTS))
    for name, layout in local.LAYOUTS.items():
        files = f"  [{', '.join(file.name for file in there[name]) or 'no file'}]" if there else ""
        print(f"{name:<{width}}  {layout}{files}")
    print(
        "\nA file is named after its task, .jsonl or .jsonl.gz, and lies in the --data folder. Every other task of"
        "\nlm-eval can have one too, with the fields of its own data set; without one it is loaded from the network."
    )
