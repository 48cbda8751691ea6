"""`sbp plan`: options of `train`, `pairs` and `generate`, and what they print; nothing heavy is imported before."""

import argparse
import json
import math

from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="such as v5p:4x4x8 or v5e:16x16")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="slices of that topology (default: 1)")
    parser.add_argument("--stage", choices=("train", "tune"), default="train", help="whose step (default: train)")
    parser.add_argument("--mesh", metavar="SIZES", help="such as data=2,fsdp=64,tensor=1 (default: searched for)")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="(default: searched for)")
    parser.add_argument("--accumulate", type=int, metavar="N", help="pieces of a batch (default: searched for)")
    parser.add_argument("--days", type=float, metavar="N", help="days that the run may take: prints the MFU it needs")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(options: argparse.Namespace, experiment: Experiment) -> None:
    """Prints the plan.

    Raises:
      SbpError: nothing fits, or what was asked makes no sense.
    """
    from sbp_jax.planning import report
    from sbp_jax.planning.plan import plan

    for name, value in (("slices", options.slices), ("accumulate", options.accumulate), ("days", options.days)):
        if value is not None and value <= 0:
            raise SbpError(f"--{name} is {value:g}; it must be above 0")
    made = plan(
        experiment,
        options.topology,
        slices=options.slices,
        stage=options.stage,
        mesh=options.mesh,
        remat=options.remat,
        accumulate=options.accumulate,
        days=options.days,
    )
    print(json.dumps(report.as_json(made), indent=1) if options.json else report.text(made), flush=True)
    if made.chosen is None:
        raise SbpError(f"nothing that was compiled fits {options.topology}; {report.remedy(made)}")


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    def number(name: str, default: float | None, text: str, kind: type = int) -> None:
        shown = "" if default is None else f" (default: {default:g})"
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text + shown)

    parser.add_argument("--documents", type=float, required=True, metavar="N", help="such as 60e6")
    parser.add_argument("--width", type=int, required=True, metavar="D", help="numbers of an embedding")
    number("--top-k", 20, "neighbours kept for each document")
    parser.add_argument("--topology", metavar="KIND:SHAPE", help="a TPU slice, such as v5p:4x4x8")
    number("--hosts", 1, "hosts without accelerators, where no topology is given")
    number("--host-memory", None, "GiB of memory of a host (default: 64 without a topology)", float)
    number("--cores", 8, "CPU cores of a host")
    parser.add_argument("--embedder", metavar="NAME", help="(default: the smallest that gives such a width)")
    number("--tokens", 256, "tokens of a document that are embedded, on average")
    number("--words", 400, "words of a document, on average")
    number("--kept", 1.0, "fraction of the neighbours that become rows of pairs, accepted or not", float)
    number("--utilisation", 0.4, "share of an accelerator's peak that embedding reaches", float)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run_pairs(options: argparse.Namespace) -> None:
    """Prints the plan.

    Raises:
      SbpError: what was asked makes no sense.
    """
    from sbp_jax.planning import pairs, pairs_report

    documents = round(options.documents)
    least = {"documents": 2, "width": 1, "top_k": 1, "hosts": 1, "cores": 1, "tokens": 1, "words": 1}
    for name, bound in least.items():
        value = documents if name == "documents" else getattr(options, name)
        if value < bound:
            raise SbpError(f"--{name.replace('_', '-')} is {value:,}; it must be at least {bound}")
    for name in ("kept", "utilisation"):
        if not 0 < getattr(options, name) <= 1:
            raise SbpError(f"--{name} is {getattr(options, name):g}; it is a fraction above 0, of at most 1")
    if options.embedder is not None and options.embedder not in pairs.EMBEDDERS:
        raise SbpError(f"--embedder {options.embedder}: the plan knows {', '.join(pairs.EMBEDDERS)}")
    if options.host_memory is not None and options.host_memory <= 0:
        raise SbpError(f"--host-memory is {options.host_memory:g}; it must be above 0")
    memory = options.host_memory and round(options.host_memory * pairs.GIB)
    if options.topology is not None:
        machines = pairs.slice_machines(options.topology, memory)
    else:
        machines = pairs.cpu_machines(options.hosts, memory or 64 * pairs.GIB, options.cores)
    corpus = pairs.Corpus(documents, options.width, options.top_k, options.tokens, options.words, options.kept)
    made = pairs.plan(corpus, machines, options.embedder, options.utilisation)
    print(json.dumps(made, indent=1) if options.json else pairs_report.text(made), flush=True)


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="such as v5p:2x2x1 or v6e:2x2")
    parser.add_argument("--slots", type=int, metavar="N", help="of a copy of the model (default: the most that fit)")
    parser.add_argument("--tensor", type=int, metavar="N", help="devices of a copy (default: as few as it fits on)")
    parser.add_argument("--tokens", type=float, default=100e9, metavar="N", help="new ones (default: 100e9)")
    parser.add_argument("--prompt-tokens", type=int, metavar="N", help="of a document, on average (default: 828)")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="of a document, on average (default: 828)")
    for name, share, text in (
        ("--utilisation", 0.6, "share of the bound that decoding reaches"),
        ("--prompt-utilisation", 0.4, "share of the peak that reading prompts reaches"),
    ):
        parser.add_argument(name, type=float, default=share, metavar="N", help=f"{text} (default: {share:g})")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run_generate(options: argparse.Namespace, experiment: Experiment) -> None:
    """Prints the plan.

    Raises:
      SbpError: nothing fits, or what was asked makes no sense.
    """
    from sbp_jax.planning import generate, generate_report

    for name in ("slots", "tensor", "tokens"):
        value = getattr(options, name)
        if value is not None and not 1 <= value < math.inf:
            raise SbpError(f"--{name} is {value:g}; it must be at least 1")
    for name in ("utilisation", "prompt_utilisation"):
        if not 0 < getattr(options, name) <= 1:
            shown = name.replace("_", "-")
            raise SbpError(f"--{shown} is {getattr(options, name):g}; it is a fraction above 0, of at most 1")
    made = generate.plan(
        experiment,
        options.topology,
        slots=options.slots,
        tensor=options.tensor,
        tokens=options.tokens,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        utilisation=options.utilisation,
        prompt_utilisation=options.prompt_utilisation,
    )
    print(json.dumps(made, indent=1) if options.json else generate_report.text(made), flush=True)
    if made["chosen"] is None:
        raise SbpError(f"nothing that was compiled fits {options.topology}; {generate_report.REMEDY}")
