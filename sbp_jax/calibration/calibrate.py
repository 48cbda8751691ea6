"""A calibration: a few documents of the run that is asked for, and what they say about the whole of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord
from sbp_jax.calibration import held_out
from sbp_jax.calibration.cost import cost
from sbp_jax.calibration.texts import Compared, accepted_tokens, scored, summary
from sbp_jax.calibration.writing import write
from sbp_jax.config import Experiment, Synthesis
from sbp_jax.data.budget import synthetic
from sbp_jax.errors import SbpError
from sbp_jax.generation.requests import Sampling
from sbp_jax.generation.run_requests import RunRequests, model_folder
from sbp_jax.generation.start import start
from sbp_jax.model import huggingface
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text.tokenizer import TextTokenizer, load
from sbp_jax.training.step import Setup

LABEL = "calibration"


class Node(Protocol):
    """What is asked of a stage instance: what it is made from, its settings, and the version of its rules."""

    @property
    def inputs(self) -> Mapping[str, str]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def version(self) -> int: ...


@dataclass(frozen=True)
class Asked:
    """What to calibrate with: documents of each setting, held-out groups at most, and the settings."""

    documents: int
    groups: int
    temperatures: tuple[float, ...]
    top_p: tuple[float, ...]


def inputs(
    nodes: Mapping[str, Node],
    suffix: str,
    find: Callable[[str], Artifact | None],
    workdir: str,
    config: str,
) -> dict[str, Artifact]:
    """The artifacts that a calibration reads, by their roles.

    Those of the synthesized documents and of their filters, and for a synthesizer its `groups` and, where there is one,
    the `base` model that it was tuned from.

    Args:
      suffix: of the instances.
      config: the file of the experiment, for messages.

    Raises:
      SbpError: some are not complete; the message has the commands that make them.
    """
    roles = dict(nodes[f"synthesized{suffix}"].inputs)
    filtered = nodes[f"synthetic{suffix}"].inputs
    roles |= {name: filtered[name] for name in ("documents", "splits", "screened")}
    if "pairs" in roles:
        roles["groups"] = nodes[nodes[roles["model"]].inputs["validation"]].inputs["groups"]
    found = {role: find(name) for role, name in roles.items()}
    if missing := sorted({roles[role] for role, artifact in found.items() if artifact is None}, key=list(nodes).index):
        covered = {parent for name in missing for parent in _ancestors(nodes, name)}
        commands = [f"`sbp run {config} --until {name}`" for name in missing if name not in covered]
        raise SbpError(f"{', '.join(missing)}: not complete in {workdir}; run {' and '.join(commands)}")
    made = {role: artifact for role, artifact in found.items() if artifact is not None}
    if "pairs" in roles and (base := nodes[roles["model"]].inputs.get("base")) is not None:
        if (artifact := find(base)) is not None:
            made["base"] = artifact
    return made


def calibrate(
    experiment: Experiment,
    nodes: Mapping[str, Node],
    suffix: str,
    made: Mapping[str, Artifact],
    asked: Asked,
    folder: str,
) -> dict[str, Any]:
    """All that is told, as JSON values; but for the speed and the hours it is the same each time.

    Args:
      made: what `inputs` gives.
      folder: for what is made on the way.

    Raises:
      SbpError: there are too few held-out groups, or the model cannot do what is asked.
    """
    node = nodes[f"synthesized{suffix}"]
    tokenizer = load(made["tokenizer"].file("tokenizer.json"), node.config["settings"])
    model = model_folder(made["model"], made["tokenizer"], "pairs" in made)
    told: dict[str, Any] = {
        "experiment": experiment.name,
        "model": {
            "instance": node.inputs["model"],
            "key": made["model"].key,
            "step": made["model"].stats.get("best_step"),
        },
        "engine": experiment.execution.engine,
        "held_out": None,
    }
    if "groups" in made:
        told["held_out"] = _held_out(experiment, made, model, tokenizer, asked.groups)
    return told | _written(experiment, nodes, suffix, made, model, tokenizer, asked, folder)


def settings(synthesis: Synthesis, asked: Asked) -> list[Sampling]:
    """Each temperature with each top-p and the experiment's own pair, in order; what is greedy has no top-p."""
    pairs = {(temperature, top_p) for temperature in asked.temperatures for top_p in asked.top_p}
    pairs.add((synthesis.temperature, synthesis.top_p))
    greedy = (0.0, synthesis.top_p if synthesis.temperature == 0 else 1.0)
    pairs = {pair if pair[0] > 0 else greedy for pair in pairs}
    return [Sampling(temperature, top_p, synthesis.top_k) for temperature, top_p in sorted(pairs)]


def _held_out(
    experiment: Experiment, made: Mapping[str, Artifact], model: epath.Path, tokenizer: TextTokenizer, count: int
) -> dict[str, Any]:
    """The losses of held-out documents, in the three cases by the synthesizer, and alone by the base model."""
    records, tuning = arrayrecord.source(made["tokens"]), experiment.tuning
    groups = held_out.choose(made["groups"], made["pairs"], lambda one: len(records[one]) // 4, tuning.context, count)
    alone: list[list[int]] = [[]] * len(groups.targets_G)
    cases = {held_out.OWN: groups.read, held_out.ALONE: alone, held_out.OTHER: groups.other}
    mesh = build_mesh(experiment.execution.mesh)

    def losses(folder: epath.Path, read: list[list[list[int]]], name: str) -> tuple[np.ndarray, np.ndarray]:
        vocabulary = huggingface.inspect(folder).vocabulary
        parameters = huggingface.load(folder, experiment.model, vocabulary, mesh)
        setup = Setup(experiment.model, vocabulary, tuning, 0, 1, mesh, experiment.execution)
        tokens = partial(_tokens, records)
        return held_out.losses(setup, parameters, read, groups.targets_G, tokens, tokenizer, f"{LABEL}: {name}")

    nats, targets_G = losses(model, list(cases.values()), "held-out losses")
    found = dict(zip(cases, nats, strict=True))
    base = epath.Path(tuning.base).expanduser() if tuning.base else None
    if base is None and "base" in made:
        base = made["base"].folder("best")
    if base is not None:
        found[held_out.BASE] = losses(base, [alone], "losses of the base model")[0][0]
    return held_out.compared(groups, found, targets_G)


def _written(
    experiment: Experiment,
    nodes: Mapping[str, Node],
    suffix: str,
    made: Mapping[str, Artifact],
    model: epath.Path,
    tokenizer: TextTokenizer,
    asked: Asked,
    folder: str,
) -> dict[str, Any]:
    """The documents of all settings in numbers, what the run costs at each of them, and the speed."""
    config, filtered = nodes[f"synthesized{suffix}"].config, nodes[f"synthetic{suffix}"]
    synthesis: Synthesis = config["synthesis"]
    source = RunRequests(synthesis, tokenizer, made["tokens"], config["context"])
    if "pairs" in made:
        source.condition(made["splits"], made["pairs"], config["conditioning"], LABEL)
    samplings = settings(synthesis, asked)
    execution = experiment.execution
    build = partial(start, model, config["decoder"], tokenizer, synthesis.seed, config["context"], execution)
    written, speed = write(source, samplings, asked.documents, execution.slots, build, f"{LABEL}: writing")
    real = made["documents"], made["splits"], made["screened"]
    rules = filtered.config["evaluations"], filtered.config["filters"], filtered.version
    scratch = Output(epath.Path(folder), Recipe(LABEL, 1, {}, {}), LABEL)
    tables = scored(scratch, source, written, Compared(*real, *rules))
    budget = synthetic(synthesis, config["share"], config["training_tokens"], made["capped"], made["oracle"])
    rows = []
    for sampling, completions, table in zip(samplings, written, tables, strict=True):
        own = (sampling.temperature, sampling.top_p) == (synthesis.temperature, synthesis.top_p)
        whole = cost(completions, accepted_tokens(table), budget, synthesis.oversample, speed)
        rows.append({"own": own} | summary(table, sampling) | {"whole_run": whole})
    return {
        "settings": rows,
        "needed": {"tokens": round(budget.tokens), "documents": budget.documents, "mean_tokens": budget.length},
        "speed": {"new_tokens_a_second": speed.rate} | vars(speed),
    }


def _tokens(records: Any, ordinal: int) -> np.ndarray:
    return np.frombuffer(records[ordinal], "<i4")


def _ancestors(nodes: Mapping[str, Node], name: str) -> set[str]:
    parents = set(nodes[name].inputs.values())
    return parents.union(*(_ancestors(nodes, parent) for parent in parents))
