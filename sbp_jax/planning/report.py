"""A plan as a text for people and as JSON for programs."""

from dataclasses import asdict, dataclass
from typing import Any

from sbp_jax.planning.compile import Compiled
from sbp_jax.planning.search import Layout, Problem, fits
from sbp_jax.planning.topology import GIB
from sbp_jax.training.flops import flops_per_token

DAY = 24 * 3600
UTILISATIONS = (0.4, 0.5)  # MFU that well-tuned runs of this size reach


@dataclass(frozen=True)
class Plan:
    """What was asked, what was compiled, and what was chosen.

    Attributes:
      steps: of the whole run; None: not known yet.
      days: that the run may take; None: not said.
      chosen: the layout that fits, with what the compiler says of it; None: none does.
      tried: everything that was compiled, in order.
    """

    experiment: str
    stage: str
    problem: Problem
    steps: int | None
    days: float | None
    chosen: tuple[Layout, Compiled] | None
    tried: tuple[tuple[Layout, Compiled], ...]


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds, and numbers of one device unless a name says otherwise.

    Keys that do not apply are null: `chosen` where nothing fits, what follows from the steps where those are not known.
    """
    problem, topology = plan.problem, plan.problem.topology
    optimization = problem.optimization
    flops = flops_per_token(problem.model, problem.vocabulary, optimization.context)
    step_tokens = optimization.batch_rows * optimization.context
    tokens = None if plan.steps is None else plan.steps * step_tokens
    all_flops = topology.flops * len(topology.devices)
    seconds_at_peak = None if tokens is None else tokens * flops / all_flops
    return {
        "experiment": plan.experiment,
        "stage": plan.stage,
        "topology": {
            "name": topology.name,
            "slices": topology.slices,
            "chips": topology.chips,
            "devices": len(topology.devices),
            "device_kind": topology.kind,
            "memory": int(topology.memory),
            "flops": topology.flops,
            "network": topology.chip.network,
        },
        "model": {"parameters": problem.parameters, "flops_per_token": flops},
        "run": {
            "context": optimization.context,
            "batch_rows": optimization.batch_rows,
            "tokens_a_step": step_tokens,
            "steps": plan.steps,
            "tokens": tokens,
            "tokens_a_second_a_device_at": {str(mfu): mfu * topology.flops / flops for mfu in UTILISATIONS},
            "days_at": seconds_at_peak and {str(mfu): seconds_at_peak / mfu / DAY for mfu in UTILISATIONS},
            "days": plan.days,
            "mfu_needed": seconds_at_peak and plan.days and seconds_at_peak / (plan.days * DAY),
        },
        "chosen": plan.chosen and _layout(plan, *plan.chosen),
        "tried": [_layout(plan, *tried) for tried in plan.tried],
    }


def _layout(plan: Plan, layout: Layout, compiled: Compiled) -> dict[str, Any]:
    optimization, topology = plan.problem.optimization, plan.problem.topology
    memory, mesh = compiled.memory, layout.mesh
    rows = optimization.batch_rows // (mesh.data * mesh.fsdp)
    flops = flops_per_token(plan.problem.model, plan.problem.vocabulary, optimization.context)
    step_flops = flops * optimization.batch_rows * optimization.context / len(topology.devices)
    sent = sum(traffic.bytes for traffic in compiled.traffic.values())
    return {
        "mesh": asdict(mesh),
        "remat": layout.remat,
        "accumulate": layout.accumulate,
        "rows": rows,
        "fits": fits(compiled, topology),
        "memory": asdict(memory),
        "collectives": {kind: asdict(traffic) for kind, traffic in compiled.traffic.items()},
        "unknown_loops": compiled.unknown_loops,
        "recomputed_by_compiler": compiled.recomputed,
        "step_seconds_at_peak": step_flops / topology.flops,
        "network_seconds_at_peak": sent / topology.chip.network,
        "compile_seconds": round(compiled.seconds, 1),
        "set": _assignments(layout),
    }


def _assignments(layout: Layout) -> list[str]:
    """What `--set` needs to run the layout."""
    sizes = [f"execution.mesh.{axis}={size}" for axis, size in asdict(layout.mesh).items() if axis != "data"]
    return [*sizes, f"execution.remat={layout.remat}", f"execution.accumulate={layout.accumulate}"]


def text(plan: Plan) -> str:
    """The plan as a table for the terminal."""
    plain = as_json(plan)
    topology, model, run, chosen = plain["topology"], plain["model"], plain["run"], plain["chosen"]
    slices = f"{topology['slices']} slices of " if topology["slices"] > 1 else ""
    tokens = f"{run['tokens']:,} tokens in {run['steps']:,} steps" if run["steps"] else "steps not known yet"
    lines = [
        ("experiment", f"{plain['experiment']}, {plain['stage']}: {tokens}"),
        (
            "topology",
            f"{slices}{topology['name']}: {topology['chips']} chips, {len(plan.problem.topology.devices)} devices of"
            f" {_size(topology['memory'])} and {topology['flops'] / 1e12:g} TFLOP/s",
        ),
        ("model", f"{model['parameters']:,} parameters, {model['flops_per_token'] / 1e9:,.4g} GFLOPs a token"),
        ("a step", f"{run['batch_rows']:,} rows of {run['context']:,}: {run['tokens_a_step']:,} tokens"),
    ]
    lines += [("", ""), *_chosen_lines(chosen, topology)] if chosen else []
    lines += [("", ""), *_time_lines(run)]
    if len(plain["tried"]) > 1 or not chosen:
        lines += [("", ""), ("compiled", "in the order of estimated speed, until one fits")]
        lines += [("", _attempt(tried, topology)) for tried in plain["tried"]]
    lines += [("", ""), ("use" if chosen else "", _advice(plan, chosen))]
    return "\n".join(f"{name:<15}{value}".rstrip() for name, value in lines)


def _chosen_lines(chosen: dict[str, Any], topology: dict[str, Any]) -> list[tuple[str, str]]:
    memory = chosen["memory"]
    share = memory["peak"] / topology["memory"]
    sent = sum(traffic["bytes"] for traffic in chosen["collectives"].values())
    pieces = f", in {chosen['accumulate']} pieces" if chosen["accumulate"] > 1 else ""
    network, products = chosen["network_seconds_at_peak"], chosen["step_seconds_at_peak"]
    lines = [
        ("layout", f"{_mesh(chosen)}, remat {chosen['remat']}, accumulate {chosen['accumulate']}"),
        ("rows a device", f"{chosen['rows']}{pieces}"),
        ("", ""),
        ("memory", "of one device"),
        ("  parameters", _size(memory["parameters"])),
        ("  optimizer", _size(memory["optimizer"])),
        ("  activations", f"{_size(memory['activations'])}, with gradients and gathered weights"),
        ("  batch, code", _size(memory["batch"] + memory["code"])),
        ("  peak", f"{_size(memory['peak'])}, {share:.0%} of {_size(topology['memory'])}"),
        ("", ""),
        ("collectives", "runs in one step, and what one device sends in them"),
    ]
    lines += [
        (f"  {kind}", f"{traffic['count']:>9,}  {traffic['bytes'] / 1e6:>11,.1f} MB")
        for kind, traffic in chosen["collectives"].items()
    ]
    beside = f"{network:.2f} s at full interconnect speed, beside {products:.2f} s of products at peak"
    lines.append(("  together", f"{'':>9}  {sent / 1e6:>11,.1f} MB: {beside}"))
    if chosen["unknown_loops"]:
        lines.append(("", f"{chosen['unknown_loops']} loops of unknown length count once"))
    if chosen["recomputed_by_compiler"]:
        lines.append(("", f"the compiler chose {chosen['recomputed_by_compiler']} instructions to compute again"))
    lines.append(("compiled in", f"{chosen['compile_seconds']:.0f} s"))
    return lines


def _time_lines(run: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for mfu in UTILISATIONS:
        speed = run["tokens_a_second_a_device_at"][str(mfu)]
        days = f"{run['days_at'][str(mfu)]:,.1f} days, " if run["days_at"] else ""
        lines.append((f"at {mfu:.0%} MFU", f"{days}{speed:,.0f} tokens a second a device"))
    if run["mfu_needed"]:
        enough = "" if run["mfu_needed"] <= 1 else ": more than there is"
        lines.append((f"for {run['days']:g} days", f"{run['mfu_needed']:.1%} MFU{enough}"))
    return lines


def _attempt(tried: dict[str, Any], topology: dict[str, Any]) -> str:
    memory = tried["memory"]
    needed = f"{'' if memory['peak'] else 'at least '}{_size(memory['needed'])}"
    verdict = "fits" if tried["fits"] else f"does not fit {_size(topology['memory'])}"
    layout = f"{_mesh(tried)}, remat {tried['remat']}, accumulate {tried['accumulate']}"
    return f"{layout}: {needed}, {verdict} ({tried['compile_seconds']:.0f} s)"


def _advice(plan: Plan, chosen: dict[str, Any] | None) -> str:
    if chosen:
        return " ".join(f"--set {assignment}" for assignment in chosen["set"])
    return f"nothing fits: {remedy(plan)}"


def remedy(plan: Plan) -> str:
    """What to change where nothing fits."""
    problem = plan.problem
    fixed = [name for name in ("mesh", "remat", "accumulate") if getattr(problem, name)]
    freer = f"leave {', '.join(fixed)} to the search, " if fixed else ""
    field = "training" if plan.stage == "train" else "tuning"
    return f"{freer}take more chips or ones with more memory, or lower {field}.context"


def _mesh(layout: dict[str, Any]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in layout["mesh"].items())


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.2f} MiB"
