"""The command line: `sbp run | status | config | plan | clean | report | export | import | pairs inspect | trace`, and
`sbp STAGE` for one stage alone."""

import argparse
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbp_jax import sweep
from sbp_jax.calibration import command as calibration_command
from sbp_jax.errors import SbpError, Stopped
from sbp_jax.parallel import executor, machine
from sbp_jax.planning.command import add_generate_options, add_options, add_pair_options
from sbp_jax.report import compare_command, trace_command
from sbp_jax.study import command as study_command
from sbp_jax.tasks import command as task_command

if TYPE_CHECKING:
    from sbp_jax.pipeline import Pipeline

STAGES = {
    "ingest": "read the corpus into documents",
    "split": "assign documents to held-out, capped and oracle sets",
    "train_tokenizer": "train the tokenizer, or take the user's own",
    "tokenize": "turn documents into tokens",
    "pack": "pack tokens into training rows",
    "embed": "embed the capped set",
    "neighbors": "find each document's nearest neighbours with ScaNN",
    "pairs": "keep the neighbours that make good pairs",
    "group": "choose the documents that are read together",
    "pack_pairs": "pack grouped pairs into tuning rows",
    "train": "train the base model and the arms",
    "tune": "tune the synthesizer on pairs",
    "synthesize": "generate synthetic documents",
    "filter": "keep the good synthetic documents",
    "judge": "ask a language model about synthetic and real documents",
    "quality": "measure synthetic documents beside real ones",
    "texts": "read the text sets that the arms are scored on",
    "copies": "find documents of the text sets among the training documents",
    "window": "cut held-out documents into windows",
    "score": "score the arms on held-out documents",
    "ask": "ask the arms the tasks of config.evaluation",
}


SHORT = ("engine", "vllm_python", "executor", "ray_address")  # fields of `execution` with options of their own
INSPECT = "pairs inspect"
PIPED = 120  # columns of a text that goes into a file


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
      0 on success, 2 for what the user can mend, 1 for a fault of the program, 130 on Ctrl-C, 143 on SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    arguments = compare_command.spelled(arguments)
    if arguments[:2] == INSPECT.split():  # `sbp pairs CONFIG` is the stage
        arguments = [INSPECT, *arguments[2:]]
    options = _parser().parse_args(arguments)
    machine.prepare()
    if not options.debug:
        _quiet_libraries()
    status = _status_of(options)
    if status and _one_of_several():  # an orderly end would wait for the others, who wait for this one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status_of(options: argparse.Namespace) -> int:
    try:
        options.command(options)
        sys.stdout.flush()
        return 0
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGTERM
    except BrokenPipeError:  # whoever read the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"error: {_message(error)}", file=sys.stderr)
        return 2 if isinstance(error, SbpError | OSError) or _disk_full(error) else 1


def _run(options: argparse.Namespace) -> None:
    from sbp_jax.parallel import hosts

    hosts.start()
    if options.task is not None:
        hosts.join_array(options.task)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # while training it asks for a profile, elsewhere it would kill
    pipeline = _pipeline(options)
    pipeline.run(_ignore if hosts.several() and not hosts.is_first() else _say, until=options.until, only=options.only)
    if not hosts.is_first():
        return
    if pipeline.artifact("report") is not None and not (options.until or options.only):
        _print_report(pipeline, options.json)


def _stage(options: argparse.Namespace) -> None:
    options.until, options.only, options.json = None, options.stage, False
    _run(options)


def _synthesize(options: argparse.Namespace) -> None:
    if not calibration_command.asked(options):
        _stage(options)
        return
    from sbp_jax.arms import SUFFIX

    pipeline = _pipeline(options)
    known = pipeline.experiment, pipeline.nodes, SUFFIX, pipeline.artifact, str(pipeline.workdir)
    calibration_command.run(options, *known)


def _report(options: argparse.Namespace) -> None:
    pipeline = _pipeline(options)
    if pipeline.artifact("report") is None:
        pipeline.run(_say, only="report")
    _print_report(pipeline, options.json)


def _status(options: argparse.Namespace) -> None:
    rows = _pipeline(options).status()
    if options.json:
        records = [
            {"name": row.name, "state": row.state, "rows": row.rows, "seconds": row.seconds, "path": str(row.path)}
            for row in rows
        ]
        print(json.dumps(records, indent=1))
        return
    width = max(len(row.name) for row in rows)
    print(f"{'stage instance':<{width}}  {'state':<8}{'rows':>12}{'seconds':>10}")
    for row in rows:
        seconds = f"{row.seconds:.1f}" if row.state == "done" else ""
        print(f"{row.name:<{width}}  {row.state:<8}{f'{row.rows:,}' if row.rows else '':>12}{seconds:>10}".rstrip())


def _config(options: argparse.Namespace) -> None:
    from sbp_jax.derived import derive, tree
    from sbp_jax.experiments import to_json

    pipeline = _pipeline(options)
    resolved = {"experiment": to_json(pipeline.experiment), "derived": derive(pipeline)}
    if options.json:
        print(json.dumps(resolved, indent=1))
        return
    for line in (*tree(resolved["experiment"]), "", "derived:", *tree(resolved["derived"], "  ")):
        print(line)


def _plan(options: argparse.Namespace) -> None:
    from sbp_jax.experiments import load
    from sbp_jax.planning import command

    command.run(options, load(options.config, options.set, options.tiny))


def _plan_pairs(options: argparse.Namespace) -> None:
    from sbp_jax.planning import command

    command.run_pairs(options)


def _plan_generate(options: argparse.Namespace) -> None:
    from sbp_jax.experiments import load
    from sbp_jax.planning import command

    command.run_generate(options, load(options.config, options.set, options.tiny))


def _clean(options: argparse.Namespace) -> None:
    pipeline = _pipeline(options)
    unused = pipeline.unused()
    if not unused:
        print(f"nothing to remove in {pipeline.workdir}")
        return
    for path in unused:
        print(path)
    if not options.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise SbpError(f"{len(unused)} artifacts are used by no experiment; add --yes to remove them")
        if input(f"remove these {len(unused)} artifacts? [y/N] ").strip().lower() not in ("y", "yes"):
            return
    pipeline.remove(unused)
    print(f"removed {len(unused)} artifacts")


def _export(options: argparse.Namespace) -> None:
    from sbp_jax.data import corpus_export
    from sbp_jax.training import exchange

    pipeline = _pipeline(options)
    if options.corpus is not None:
        for file in corpus_export.export(pipeline.experiment, pipeline.artifact, options):
            print(file)
        return
    models = [name for name, node in pipeline.nodes.items() if node.stage in ("train", "tune")]
    name = exchange.choose(options.model, models)
    trained, tokenizer = pipeline.artifact(name), pipeline.artifact("tokenizer")
    if trained is None or tokenizer is None:
        raise SbpError(f"{name} is not complete in {pipeline.workdir}; run `sbp run ... --until {name}`")
    for file in exchange.export(trained, tokenizer, pipeline.experiment, options):
        print(file)


def _import(options: argparse.Namespace) -> None:
    from sbp_jax.training import exchange

    sections = exchange.fields(options.folder)
    print(json.dumps(sections, indent=1) if options.json else exchange.assignments(sections))


def _inspect(options: argparse.Namespace) -> None:
    from rich.console import Console

    from sbp_jax.report import pair_samples, pair_text
    from sbp_jax.report.pairs import evidence

    pipeline = _pipeline(options)
    stages = ("documents", "neighbors", "screened", "pairs")
    found = {name: pipeline.artifact(name) for name in stages}
    made = {name: artifact for name, artifact in found.items() if artifact is not None}
    if missing := [name for name in stages if name not in made]:
        raise SbpError(f"{', '.join(missing)}: not complete in {pipeline.workdir}; run `sbp run ... --until pairs`")
    told = evidence(**made, settings=pipeline.experiment.pairs)
    unknown = sorted(set(options.verdict or ()) - set(told["verdicts"]))
    if unknown:
        raise SbpError(f"no pair is {', '.join(unknown)}; the verdicts are {', '.join(told['verdicts'])}")
    samples = pair_samples.sample(made["pairs"], made["documents"], options.samples, options.verdict)
    if options.json:
        print(json.dumps(told | {"samples": samples}, indent=1))
        return
    console = Console(highlight=False)
    pair_text.show(told, samples, console if console.is_terminal else Console(highlight=False, width=PIPED))


def _sweep(options: argparse.Namespace) -> None:
    sweep.run(options, _pipeline(options), _say)


def _trace(options: argparse.Namespace) -> None:
    pipeline = _pipeline(options)
    trace_command.run(options, pipeline.experiment, pipeline.nodes, pipeline.artifact, str(pipeline.workdir))


def _evaluate(options: argparse.Namespace) -> None:
    task_command.run(options, _pipeline, _say)


def _print_report(pipeline: "Pipeline", as_json: bool = False) -> None:
    from sbp_jax.report import summary

    artifact = pipeline.artifact("report")
    assert artifact is not None
    content = json.loads(artifact.file("summary.json").read_text())
    if as_json:
        print(json.dumps(content, indent=1))
        return
    print(summary.text(content))
    print(f"\nreport: {artifact.file('report.html')}")


def _pipeline(options: argparse.Namespace) -> "Pipeline":
    from sbp_jax.experiments import load
    from sbp_jax.pipeline import Pipeline

    short = [f"execution.{name}={value}" for name in SHORT if (value := getattr(options, name, None))]
    experiment = load(options.config, [*options.set, *short], options.tiny)
    workdir = options.workdir or f"runs/{experiment.name}"
    if "://" in workdir:
        raise SbpError(
            f"--workdir {workdir}: runs work in local folders for now; copy the finished folder to the bucket"
        )
    return Pipeline(experiment, str(Path(workdir).absolute()))


def _parser() -> argparse.ArgumentParser:
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="replace a field, such as training.peak_lr=3e-3; may be repeated",
    )
    settings.add_argument(
        "--tiny", action="store_true", help="the config's tiny variant: the same pipeline in about a minute on a CPU"
    )
    settings.add_argument("--workdir", help="folder for artifacts (default: runs/NAME)")
    settings.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shared = argparse.ArgumentParser(add_help=False, parents=[settings])
    shared.add_argument("config", help="a config file, such as configs/quickstart.py")

    parser = argparse.ArgumentParser(
        prog="sbp", description="Synthetic bootstrapped pretraining, from documents to a report."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, function: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(command=function)
        return command

    run = add("run", "run everything that is not done yet", _run)
    run.add_argument("--json", action="store_true", help="print the results as JSON")
    group = run.add_mutually_exclusive_group()
    group.add_argument("--until", metavar="STAGE", help="stop after this stage or stage instance")
    group.add_argument("--only", metavar="STAGE", help="run this stage or stage instance alone")
    for name, text, function in (
        ("status", "show what is done, partial and missing", _status),
        ("config", "print the resolved experiment and the numbers that follow from it", _config),
        ("report", "print the results and the path of the report", _report),
    ):
        add(name, text, function).add_argument("--json", action="store_true", help="print JSON")
    compare_command.add_parser(commands)
    inspected = add(INSPECT, "show why pairs were kept or rejected, with samples of each verdict", _inspect)
    inspected.add_argument("--samples", type=int, default=2, metavar="N", help="of each verdict (default: 2)")
    inspected.add_argument(
        *("--verdict", "-v"), action="append", metavar="NAME", help="sample this verdict alone; may be repeated"
    )
    inspected.add_argument("--json", action="store_true", help="print JSON, the texts of the samples included")
    sweep.add_options(add("sweep", sweep.HELP, _sweep))
    study_command.add_options(add("study", study_command.HELP, lambda options: study_command.run(options, _say)))
    trace_command.add_options(add("trace", trace_command.HELP, _trace))
    evaluate = commands.add_parser(
        "evaluate", help=task_command.HELP, description=task_command.HELP, parents=[settings]
    )
    evaluate.set_defaults(command=_evaluate)
    task_command.add_options(evaluate)
    exported = add("export", "write a finished model, or the corpus of an arm, as a Hugging Face folder", _export)
    what = exported.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help="an arm, a stage instance, or synthesizer")
    what.add_argument("--corpus", metavar="ARM", help="the documents that an arm reads, with a data card")
    exported.add_argument("--to", required=True, metavar="FOLDER", help="a folder that is empty or not there yet")
    exported.add_argument("--checkpoint", choices=("final", "best"), default="final", help="last, or by validation")
    exported.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    exported.add_argument("--layout", choices=("qwen3", "llama", "qwen3-embedding"), help="default: the model's own")
    exported.add_argument("--kind", choices=("mixed", "synthetic"), default="mixed", help="documents of a corpus")
    exported.add_argument("--format", choices=("parquet", "jsonl"), default="parquet", help="of a corpus")
    text = "print the fields of a config whose base model is the one in a Hugging Face folder"
    imported = commands.add_parser("import", help=text, description=text)
    imported.add_argument("folder", help="holds config.json, safetensors and tokenizer.json")
    imported.add_argument("--json", action="store_true", help="print JSON instead of options for `sbp run`")
    imported.add_argument("--debug", action="store_true", help="show the traceback of an error")
    imported.set_defaults(command=_import)
    clean = add("clean", "remove artifacts that no experiment of the work folder uses", _clean)
    clean.add_argument("--yes", action="store_true", help="do not ask")
    plan = commands.add_parser("plan", help="plan a run for hardware that is not there")
    plans = plan.add_subparsers(required=True, metavar="WHAT")
    train = plans.add_parser("train", parents=[shared], help="compile the training step for a TPU topology")
    train.set_defaults(command=_plan)
    add_options(train)
    text = "what finding pairs takes: the search to use, memory, operations, bytes"
    planned_pairs = plans.add_parser("pairs", help=text, description=text)
    planned_pairs.set_defaults(command=_plan_pairs)
    planned_pairs.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_pair_options(planned_pairs)
    text = "compile generation for a TPU topology: slots, memory, the bound of its bandwidth, chip-hours"
    generate = plans.add_parser("generate", parents=[shared], help=text, description=text)
    generate.set_defaults(command=_plan_generate)
    add_generate_options(generate)
    for stage, text in STAGES.items():
        function = _synthesize if stage == "synthesize" else _stage
        command = add(stage.replace("_", "-"), text, function)
        command.set_defaults(stage=stage)
        if stage == "synthesize":
            calibration_command.add_options(command)
            _add_engine(command)
        _add_executor(command)
    _add_engine(run)
    _add_executor(run)
    return parser


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=("jax", "vllm"), help="that generates; short for execution.engine")
    text = "the Python of an environment with vLLM; short for execution.vllm_python"
    command.add_argument("--vllm-python", metavar="PATH", help=text)


def _add_executor(command: argparse.ArgumentParser) -> None:
    text = "where CPU stages are carried out; short for execution.executor"
    command.add_argument("--executor", choices=executor.NAMES, help=text)
    command.add_argument("--ray-address", metavar="ADDRESS", help="of a running Ray cluster")
    text = (
        "this process is one of the n tasks of an array, the first is 0/n; they share the work folder and divide shards"
    )
    command.add_argument("--task", metavar="i/n", help=text)


def _quiet_libraries() -> None:
    """Leaves the terminal to this program: warnings of compilers and checkpoint writers go unless asked for."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import logging

    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    # Of many checkpoint writes that fail together, as on a full disk, one is raised. The others end in threads and in
    # callbacks of an event loop that is gone by then, and would follow as tracebacks.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda event: None


def _disk_full(error: BaseException) -> bool:
    return "No space left on device" in str(error)


def _message(error: Exception) -> str:
    if isinstance(error, SbpError):
        return str(error)
    if _disk_full(error):
        where = getattr(error, "filename", None)
        at = f" at {where}" if where else ""
        first = str(error).splitlines()[0][:160]
        return f"the disk is full{at}; make room and run again: what was finished is kept ({first})"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; check that path and its permissions, and run again"
    return f"{type(error).__name__}: {error} (a fault of the program; --debug shows where)"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ignore(line: str) -> None:
    pass


def _one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
