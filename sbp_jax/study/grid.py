"""A study: an experiment in several settings and with several seeds, and a record of each number.

A config with a study has `SETTINGS`: what is varied, and which arms are recorded. Each seed is an experiment of its own
from the beginning, with other documents held out, another capped set, tokenizer, synthesizer and samples, and in a
world of concepts another world; so that the spread over seeds holds all there is of luck. A line is added to the
records as soon as an arm of a setting is scored, and what is recorded is not made again: artifacts may be deleted
between two sittings.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sbp_jax.accounting.charges import charges, entries, roles
from sbp_jax.arms import SUFFIX, Source, source, suffix
from sbp_jax.artifacts import Artifact
from sbp_jax.config import BASE_ARM, Arm, Experiment
from sbp_jax.errors import SbpError
from sbp_jax.experiments import check, load, load_module
from sbp_jax.overrides import override
from sbp_jax.pipeline import Pipeline
from sbp_jax.quality.measures import QUALITY
from sbp_jax.study import concepts, conditional, truth
from sbp_jax.study.world import World
from sbp_jax.training.export import LEDGER
from sbp_jax.training.loop import METRICS
from sbp_jax.training.metrics import read_metrics


@dataclass(frozen=True)
class Setting:
    """A point of a study.

    Attributes:
      name: as it stands in the records.
      sets: overrides of the config, as of `--set`; {world} in them is the folder of the world of concepts.
      arms: those that are recorded; None: all of the config.
      world: rules and counts of a world of concepts that differ from the study's.
    """

    name: str
    sets: tuple[str, ...] = ()
    arms: tuple[str, ...] | None = None
    world: Mapping[str, Any] = field(default_factory=dict)


def repetition_grid(
    weight_decays: Sequence[float], epochs: Sequence[float | None], dropouts: Sequence[float] = (0.0,)
) -> tuple[Setting, ...]:
    """The grid from which the repetition arm is chosen: weight decay, passes (None: the common budget), dropout."""
    return tuple(
        Setting(
            f"repetition/{decay:g}/{'all' if passes is None else f'{passes:g}'}/{dropout:g}",
            (
                f"arms.repetition.weight_decay={decay}",
                f"arms.repetition.epochs={passes}",
                f"training.dropout={dropout}",
            ),
            ("repetition",),
        )
        for decay in weight_decays
        for passes in epochs
        for dropout in dropouts
    )


@dataclass(frozen=True)
class Study:
    """A config with its settings.

    Attributes:
      world: rules and counts of its world of concepts; None: the corpus is real.
      sets: overrides of all settings.
      tiny: whether the config's tiny variant is meant.
    """

    config: str
    settings: tuple[Setting, ...]
    world: Mapping[str, Any] | None = None
    sets: tuple[str, ...] = ()
    tiny: bool = False

    def chosen(self, names: Sequence[str] | None) -> tuple[Setting, ...]:
        """The settings with these names; None: all.

        Raises:
          SbpError: there is no such setting.
        """
        known = {setting.name: setting for setting in self.settings}
        if unknown := [name for name in names or () if name not in known]:
            raise SbpError(f"{self.config} has no setting {', '.join(unknown)}; there are {', '.join(known)}")
        return self.settings if names is None else tuple(known[name] for name in names)


def read(config: str, sets: tuple[str, ...] = (), tiny: bool = False) -> Study:
    """The study of a config file: its `SETTINGS`, and its `WORLD` if it has one.

    Raises:
      SbpError: the file is no config or has no study.
    """
    module = load_module(config)
    if not hasattr(module, "SETTINGS"):
        raise SbpError(f"the config file {config} has no SETTINGS, so it is no study; `sbp run` runs it")
    world = None if tiny else getattr(module, "WORLD", None)  # the tiny variant has a corpus of its own
    return Study(config, tuple(module.SETTINGS), world, sets, tiny)


def experiment(study: Study, setting: Setting, seed: int, workdir: Path) -> tuple[Experiment, World | None]:
    """One replicate of a setting, and its world, whose files are written if they are not there."""
    made = load(study.config, tiny=study.tiny)
    seeds = [f"seeds={seed}", f"splits.seed={seed}", f"synthesis.seed={seed}"]
    sets, world = [*study.sets, *setting.sets], None
    if study.world is not None:
        options = {**study.world, **setting.world, "seed": seed}
        folder = workdir / "worlds" / "-".join(f"{name}={value}" for name, value in options.items())
        if not (folder / concepts.WORLD).exists():  # the last file to be written
            concepts.write_from(folder, options)
        world = concepts.load(folder)
        seeds.append(f"corpus.paths={folder / concepts.DOCUMENTS}")
        seeds += [f"evaluation.texts.{text.name}.paths={folder / text.name}.jsonl" for text in made.evaluation.texts]
        sets = [assignment.replace("{world}", str(folder)) for assignment in sets]
    for assignment in (*seeds, *sets):
        made = override(made, assignment)
    check(made)
    return made, world


def records(pipeline: Pipeline, world: World | None, arm: Arm, seed: int) -> dict[str, Any]:
    """The numbers of one run that is scored, and of the synthetic text it read."""
    nodes, run = pipeline.nodes, f"{arm.name}-{seed}"
    trained = _artifact(pipeline, f"train-{run}")
    ledger = json.loads(trained.file(LEDGER).read_text())
    found: dict[str, Any] = {"arm": arm.name, "key": _key(pipeline, arm, seed)}
    found["losses"] = {"test": _loss(pipeline, f"score-{run}")}
    for chosen in pipeline.experiment.evaluation.texts:
        found["losses"][chosen.name] = _loss(pipeline, f"score-{chosen.name}-{run}")
    found |= {name: trained.stats[name] for name in ("steps", "tokens", "best_step", "best_validation")}
    found["curve"] = [
        {"tokens": line["tokens_seen"], **{name: line[name] for name in line if name.startswith("validation")}}
        for line in read_metrics(trained.file(METRICS))
        if "validation" in line
    ]
    found["streams"] = {name: {unit: entry[unit] for unit in ("tokens", "epochs")} for name, entry in ledger.items()}
    charged = entries(nodes, f"train-{run}")
    artifacts = {role: _artifact(pipeline, name) for role, name in roles(charged).items()}
    vocabulary = _artifact(pipeline, "tokenizer").stats["vocab_size"]
    made = charges(charged, artifacts, pipeline.experiment.model, vocabulary)
    found["flops"] = made.total
    if (origin := source(arm)) is not None:
        found["synthetic"] = _synthetic(pipeline, world, origin)
    return found


def _synthetic(pipeline: Pipeline, world: World | None, origin: Source) -> dict[str, Any]:
    """What is known of a source of synthetic text."""
    (kind, start), ending = origin, suffix(*origin)
    documents, splits = _artifact(pipeline, "documents"), _artifact(pipeline, "splits")
    found: dict[str, Any] = {}
    for name in ("synthesized", "synthetic"):
        made = _artifact(pipeline, name + ending)
        found[name] = truth.synthetic(world, documents, splits, made) if world else {"documents": made.rows}
    if kind != "none":
        synthesizer = _artifact(pipeline, f"synthesizer{ending}")
        found["synthesizer"] = {name: synthesizer.stats[name] for name in ("steps", "best_step", "best_validation")}
        found["pairs"] = truth.pairs(documents, splits, _artifact(pipeline, f"pairs{SUFFIX[kind]}"))
        if world is not None:
            base = _artifact(pipeline, f"train-{start or BASE_ARM}-{pipeline.experiment.seeds[0]}")
            known = (world, documents, splits, _artifact(pipeline, "tokenizer"), base, synthesizer)
            found["costs"] = conditional.costs(pipeline.experiment, *known)
    if world is None:
        found["quality"] = json.loads(_artifact(pipeline, f"quality{ending}").file(QUALITY).read_text())["rows"]
    return found


def _key(pipeline: Pipeline, arm: Arm, seed: int) -> str:
    """Stands for all that a run was made by."""
    return pipeline.recipes[f"train-{arm.name}-{seed}"].key


def _behind(pipeline: Pipeline, world: World | None, arm: Arm, seed: int) -> list[str]:
    """The instances to make so that an arm can be recorded."""
    texts = [f"{chosen.name}-" for chosen in pipeline.experiment.evaluation.texts]
    names = [f"score-{text}{arm.name}-{seed}" for text in ("", *texts)]
    if world is None and (origin := source(arm)) is not None:
        names.append(f"quality{suffix(*origin)}")
    return names


def _loss(pipeline: Pipeline, name: str) -> dict[str, float]:
    stats = _artifact(pipeline, name).stats
    return {unit: stats[unit] for unit in ("nats_per_token", "bits_per_byte")}


def _artifact(pipeline: Pipeline, name: str) -> Artifact:
    found = pipeline.artifact(name)
    if found is None:
        raise SbpError(f"{name} is not finished in {pipeline.workdir}")
    return found


def recorded(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of records; none where there is no file."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def run(
    study: Study,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    workdir: Path,
    file: Path,
    say: Callable[[str], None] = print,
) -> None:
    """Makes and records what is not recorded of these settings with these seeds, seed by seed."""
    for seed in seeds:
        for setting in settings:
            _run(study, setting, seed, workdir, file, say)


def _run(study: Study, setting: Setting, seed: int, workdir: Path, file: Path, say: Callable[[str], None]) -> None:
    """Makes and records the arms of a setting that are not recorded with this seed."""
    made, world = experiment(study, setting, seed, workdir)
    pipeline = Pipeline(made, str(workdir))
    done = {line["arm"]: line for line in recorded(file) if (line["setting"], line["seed"]) == (setting.name, seed)}
    todo = []
    for arm in made.arms:
        if setting.arms is not None and arm.name not in setting.arms:
            continue
        if arm.name not in done:
            todo.append(arm)
        elif done[arm.name]["key"] != _key(pipeline, arm, seed):
            say(f"{setting.name}, seed {seed}, {arm.name}: recorded of another recipe; delete the line to make it anew")
    for arm in todo:
        say(f"{setting.name}, seed {seed}, {arm.name}")
        for name in _behind(pipeline, world, arm, seed):
            pipeline.run(say, instance=name)
        line = {"setting": setting.name, "seed": seed, **records(pipeline, world, arm, seed)}
        _append(file, json.dumps(line))


def _append(file: Path, line: str) -> None:
    """Adds a line, behind the last whole one: a run that was killed may have left a part of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = file.read_bytes() if file.exists() else b""
    with file.open("r+b" if content else "wb") as stream:
        stream.truncate(content.rfind(b"\n") + 1)
        stream.seek(0, 2)
        stream.write(line.encode() + b"\n")
