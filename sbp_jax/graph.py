"""The stage instances of an experiment and how they feed one another: the whole method on one page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

from etils import epath

from sbp_jax.accounting import charges
from sbp_jax.arms import SUFFIX, Source, TrainedArm, in_order, source, suffix, trained_arms
from sbp_jax.artifacts import Artifact
from sbp_jax.config import BASE_ARM, Arm, Experiment
from sbp_jax.embedding import models
from sbp_jax.errors import SbpError
from sbp_jax.quality import questions
from sbp_jax.report.source import to_source
from sbp_jax.stages import (
    ask,
    embed,
    filter,
    group,
    ingest,
    judge,
    neighbors,
    pack,
    pack_pairs,
    pairs,
    quality,
    report,
    score,
    screen,
    split,
    synthesize,
    texts,
    tokenize,
    train,
    train_tokenizer,
    tune,
    window,
)
from sbp_jax.tasks import harness, local
from sbp_jax.text import contamination, documents


def _files(path: str) -> list[epath.Path]:
    return [epath.Path(path).expanduser()]


@dataclass(frozen=True)
class Node:
    """One stage instance.

    Attributes:
      name: unique in the experiment, such as "train-sbp-0".
      stage: name of the stage.
      version: version of its rules.
      run: the stage's function.
      inputs: name of the instance that makes each input artifact, by the role it plays.
      config: the stage's other arguments, all part of the recipe.
      files: lists the user's files it reads, whose content is part of the recipe.
      all_hosts: whether all processes run it together, as one program on all devices.
      watched: further inputs, by role, and `aside` further arguments that cannot change what it makes, only what is
        told on the way; no part of the recipe.
    """

    name: str
    stage: str
    version: int
    run: Callable[..., Artifact]
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    files: Callable[[], list[epath.Path]] | None = None
    all_hosts: bool = False
    watched: Mapping[str, str] = field(default_factory=dict)
    aside: Mapping[str, Any] = field(default_factory=dict)


def graph(experiment: Experiment) -> dict[str, Node]:
    """All stage instances of an experiment by name, each after its inputs."""
    nodes: dict[str, Node] = {}
    context, settings = experiment.training.context, experiment.tokenizer

    inputs: dict[str, str]
    config: dict[str, Any]

    def add(
        name: str,
        stage: ModuleType,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        files: Callable[[], list[epath.Path]] | None = None,
        watched: Mapping[str, str] = MappingProxyType({}),
        aside: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        if name in nodes:
            raise SbpError(f"two stage instances would be named {name}; give an arm or a text set another name")
        nodes[name] = Node(
            *(name, stage.__name__.rpartition(".")[2], stage.VERSION, stage.run, inputs, config, files),
            all_hosts=stage in (train, tune, score, ask, embed, neighbors, synthesize),
            watched=watched,
            aside=aside,
        )
        return name

    # Real documents, and their packed rows.
    real = add(
        "documents", ingest, {}, {"corpus": experiment.corpus}, lambda: documents.source_files(experiment.corpus.paths)
    )
    splits = add("splits", split, {"documents": real}, {"splits": experiment.splits})
    if settings.path is None:
        own_tokenizer = None
    else:  # what is to be trained is then of no account
        own_tokenizer = partial(_files, settings.path)
        settings = replace(settings, vocab_size=0)
    tokenizer = add(
        "tokenizer", train_tokenizer, {"documents": real, "splits": splits}, {"tokenizer": settings}, own_tokenizer
    )
    tokens = add("tokens", tokenize, {"documents": real, "tokenizer": tokenizer}, {"settings": settings})
    inputs = {"tokens": tokens, "splits": splits, "documents": real, "tokenizer": tokenizer}
    for stream in ("capped", "oracle", "validation"):
        add(f"rows-{stream}", pack, inputs, {"stream": stream, "context": context, "settings": settings})

    # What the arms are scored on: the test documents, and the user's text sets.
    windows = {"context": context, "stride": experiment.evaluation.stride or context, "settings": settings}
    add("rows-test", window, inputs, windows)
    watched: dict[str, str] = {}
    for chosen in experiment.evaluation.texts:
        found = add(f"texts-{chosen.name}", texts, {}, {"texts": chosen}, partial(texts.files, chosen))
        inputs = {"documents": found, "tokenizer": tokenizer}
        inputs = inputs | {"tokens": add(f"tokens-text-{chosen.name}", tokenize, inputs, {"settings": settings})}
        watched[f"text/{chosen.name}"] = add(f"rows-text-{chosen.name}", window, inputs, windows)

    arms = in_order(trained_arms(experiment))
    base = train_name(BASE_ARM, experiment.seeds[0])

    def add_arm(entry: TrainedArm) -> None:
        """One model for each seed of an arm."""
        arm = entry.arm
        inputs = {
            "real": f"rows-{arm.real}" + ("-in-context" if arm.layout == "in_context" else ""),
            "oracle": "rows-oracle",
            "validation": "rows-validation",
            "tokenizer": tokenizer,
        }
        if (origin := source(arm)) is not None:
            inputs |= {role_of(arm): f"rows-{role_of(arm)}{suffix(*origin)}"}
        training = experiment.training
        if arm.weight_decay is not None:
            training = replace(training, weight_decay=arm.weight_decay)
        config = {"settings": settings, "model": experiment.model, "training": training}
        config |= {"synthetic_share": arm.synthetic_share}
        config |= {"order": arm.order} if arm.order != "uniform" else {}  # in the recipe where it is not as usual
        config |= {"epochs": arm.epochs} if arm.epochs is not None else {}
        if arm.flops_of is not None:
            charged = charges.entries(nodes, train_name(arm.flops_of, experiment.seeds[0]))
            inputs |= charges.roles(charged)
            config |= {"charged": charged}
        told = {"rows_while_training": experiment.evaluation.rows_while_training}
        for seed in entry.seeds:
            name, given = train_name(arm.name, seed), config | {"seed": seed}
            add(name, train, inputs, given, watched=watched, aside=told if watched else {})

    # Arms that need the real rows alone; the first run of the repetition arm is the base model.
    early = [entry for entry in arms if source(entry.arm) is None and entry.arm.layout == "documents"]
    early = [entry for entry in early if entry.arm.flops_of is None]
    for entry in early:
        add_arm(entry)

    # Step 1: pairs, and the rows of related documents side by side.
    inputs, config = {"documents": real, "splits": splits}, {"embedding": experiment.embedding}
    if experiment.embedding.model == models.SELF and experiment.embedding.vectors is None:
        inputs |= {"base": base, "tokenizer": tokenizer}
        config |= {"model": experiment.model, "settings": settings}
    embeddings = add("embeddings", embed, inputs, config, partial(models.files, experiment.embedding))
    near = add("neighbors", neighbors, {"embeddings": embeddings}, {"neighbors": experiment.neighbors})
    evaluations = contamination.Evaluations(experiment.pairs.decontaminate)
    inputs = {"documents": real, "splits": splits}
    screened = add("screened", screen, inputs, {"evaluations": evaluations}, evaluations.files)
    related = add(
        "pairs",
        pairs,
        {"neighbors": near, "screened": screened, "tokens": tokens},
        {"pairs": experiment.pairs, "context": experiment.tuning.context},
    )

    if any(entry.arm.layout == "in_context" for entry in arms):
        inputs = {"tokens": tokens, "splits": splits, "documents": real, "tokenizer": tokenizer, "neighbors": near}
        config = {"stream": "capped", "context": context, "settings": settings}
        add("rows-capped-in-context", pack, inputs, config)

    def add_groups(kind: str) -> str:
        """Pairs for synthesizers, each grouped with further documents that are read, and the rows of these."""
        ending = SUFFIX[kind]
        chosen = related if kind == "related" else f"pairs{ending}"
        if f"groups{ending}" in nodes:  # of an earlier round
            return chosen
        if kind == "random":  # the control: as many pairs from the same seeds, of documents that are not related
            config: dict[str, Any] = {"neighbors": experiment.neighbors, "threshold": experiment.pairs.threshold}
            drawn = add(f"neighbors{ending}", neighbors, {"embeddings": embeddings, "like": related}, config)
            inputs = {"neighbors": drawn, "screened": screened, "tokens": tokens}
            config = {"pairs": experiment.pairs, "context": experiment.tuning.context, "window": False}
            add(chosen, pairs, inputs, config)
        tuning, rules = experiment.tuning, experiment.pairs
        config = {
            "conditioning": tuning.conditioning,
            "near_duplicate": rules.near_duplicate,
            "common": rules.common,
            "validation": tuning.validation,
            "context": tuning.context,
        }
        inputs = {"pairs": chosen, "screened": screened, "tokens": tokens}
        grouped = add(f"groups{ending}", group, inputs, config)
        for part in ("train", "validation"):
            config = {"settings": settings, "part": part, "context": tuning.context}
            inputs = {"groups": grouped, "tokens": tokens, "tokenizer": tokenizer}
            add(f"rows-pairs-{part}{ending}", pack_pairs, inputs, config)
        return chosen

    def add_synthesizer(kind: str, start: str | None) -> str:
        """Step 2: the synthesizer, tuned on pairs from the model of an arm; None: from the base model."""
        tuning, ending = experiment.tuning, SUFFIX[kind]
        inputs = {
            "pairs": f"rows-pairs-train{ending}",
            "validation": f"rows-pairs-validation{ending}",
            "tokenizer": tokenizer,
        }
        if start is not None or tuning.base is None:
            inputs["base"], own_base = base if start is None else train_name(start, experiment.seeds[0]), None
        else:
            own_base = partial(tune.base_files, tuning, experiment.model, settings)
        config = {"settings": settings, "model": experiment.model, "tuning": tuning}
        return add(f"synthesizer{suffix(kind, start)}", tune, inputs, config, own_base)

    def add_source(kind: str, start: str | None) -> None:
        """Step 3: synthetic documents, all of them and those kept, and the rows of these.

        Without pairs nothing is read before a document is written, and the model need not be a synthesizer.
        """
        ending, chosen = suffix(kind, start), None if kind == "none" else add_groups(kind)
        if kind == "none":  # the control: what the model of an arm writes of itself
            model = base if start is None else train_name(start, experiment.seeds[0])
        elif (model := f"synthesizer{ending}") not in nodes:
            add_synthesizer(kind, start)
        inputs = {"model": model, "capped": "rows-capped", "oracle": "rows-oracle", "tokens": tokens}
        inputs |= {"splits": splits, "documents": real, "tokenizer": tokenizer}
        config: dict[str, Any] = {
            "settings": settings,
            "decoder": experiment.model,
            "synthesis": experiment.synthesis,
            "conditioning": 0,
            "context": context,
            "share": shares[kind, start],
            "training_tokens": experiment.training.tokens,
        }
        if chosen is not None:
            inputs["pairs"] = chosen
            config |= {"conditioning": experiment.tuning.conditioning, "context": experiment.tuning.context}
        synthesized = add(f"synthesized{ending}", synthesize, inputs, config)
        inputs = {"synthesized": synthesized, "documents": real, "splits": splits, "screened": screened}
        config = {"evaluations": evaluations, "filters": experiment.filters}
        kept = add(f"synthetic{ending}", filter, inputs, config, evaluations.files)
        inputs = {"documents": kept, "tokenizer": tokenizer}
        tokenized = add(f"tokens-synthetic{ending}", tokenize, inputs, {"settings": settings})
        if "synthetic" in roles[kind, start]:
            inputs = {"tokens": tokenized, "documents": kept, "tokenizer": tokenizer}
            config = {"stream": "synthetic", "context": context, "settings": settings}
            add(f"rows-synthetic{ending}", pack, inputs, config)
        if "megadoc" in roles[kind, start]:
            inputs = {"tokens": tokens, "documents": real, "tokenizer": tokenizer}
            inputs |= {"synthetic": kept, "synthetic_tokens": tokenized}
            config = {"stream": "megadoc", "context": context, "settings": settings}
            add(f"rows-megadoc{ending}", pack, inputs, config)
        written.append((synthesized, kept, kind, start))

    def add_quality(synthesized: str, kept: str, kind: str, start: str | None) -> str:
        """Synthetic documents beside real ones, and what a judge says of them, where there is one."""
        ending = suffix(kind, start)
        about = {"pairs": kind, "base": start, "suffix": ending}
        inputs = {"synthesized": synthesized, "synthetic": kept, "documents": real, "splits": splits, "pairs": related}
        asked = experiment.quality.judge
        verdicts = {}
        if asked.url is not None:
            config = {"judge": asked, "prompts": questions.hashes()}
            verdicts = {"judge": add(f"judge{ending}", judge, inputs, config)}
        inputs |= {"embeddings": embeddings, "tokenizer": tokenizer}
        config = {"measured": experiment.quality.documents, "about": about, "embedding": experiment.embedding}
        config |= {"settings": settings, "evaluations": evaluations}
        if experiment.embedding.model == models.SELF and experiment.embedding.vectors is None:
            inputs["base"] = base
            config["model"] = experiment.model
        files = partial(models.files, experiment.embedding)
        return add(f"quality{ending}", quality, inputs | verdicts, config, lambda: [*files(), *evaluations.files()])

    written: list[tuple[str, str, str, str | None]] = []  # for each source the instances, kind of pairs and base
    add_groups("related")
    synthesizer = add_synthesizer("related", None)
    shares: dict[Source, float] = {}  # the greatest of the arms that read a source says how much is written
    roles: dict[Source, set[str]] = {}
    for entry in arms:
        if (origin := source(entry.arm)) is not None:
            shares[origin] = max(shares.get(origin, 0.0), entry.arm.synthetic_share)
            roles.setdefault(origin, set()).add(role_of(entry.arm))
    for kind in SUFFIX:
        if (kind, None) in shares:
            add_source(kind, None)
    for entry in arms:
        if entry not in early:
            origin = source(entry.arm)
            if origin is not None and f"synthetic{suffix(*origin)}" not in nodes:
                add_source(*origin)
            add_arm(entry)

    # Synthetic documents beside real ones; behind the arms, which no judge that is down keeps from training.
    for made in written:
        add_quality(*made)

    # Scores and the report.
    evaluation = experiment.evaluation
    inputs = {"documents": real, "splits": splits, "neighbors": near, "screened": screened, "pairs": related}
    inputs |= {"synthesizer": synthesizer, "tokenizer": tokenizer}
    if ("related", None) in shares:
        inputs |= {"synthesized": "synthesized", "synthetic": "synthetic"}
    for entry in trained_arms(experiment):
        for seed in entry.seeds:
            arm, trained = entry.arm, train_name(entry.arm.name, seed)
            config = {"model": experiment.model, "training": experiment.training}
            scored = add(f"score-{arm.name}-{seed}", score, {"trained": trained, "rows": "rows-test"}, config)
            inputs |= {f"trained/{arm.name}/{seed}": trained, f"scored/{arm.name}/{seed}": scored}
            for role, rows in watched.items():
                name = f"score-{role.removeprefix('text/')}-{arm.name}-{seed}"
                inputs[f"{role}/{arm.name}/{seed}"] = add(name, score, {"trained": trained, "rows": rows}, config)
            for task in experiment.evaluation.tasks:
                asked = local.Asked(task, evaluation.fewshot, evaluation.limit, evaluation.data)
                config = {"model": experiment.model, "asked": asked, "harness": harness.version()}
                name, role = (f"task{mark}{local.plain(task)}{mark}{arm.name}{mark}{seed}" for mark in "-/")
                inputs[role] = add(name, ask, {"trained": trained}, config, partial(local.files, asked))
    for origin in shares:
        inputs[f"quality/{suffix(*origin)}"] = f"quality{suffix(*origin)}"
    charged = tuple(
        (entry.arm.name, charges.entries(nodes, train_name(entry.arm.name, entry.seeds[0])))
        for entry in trained_arms(experiment)
    )
    for _, entries in charged:
        inputs |= charges.roles(entries)
    config = {"experiment": experiment, "source": to_source(experiment), "charges": charged}
    add("report", report, inputs, config)
    return nodes


def train_name(arm: str, seed: int) -> str:
    """The instance that trains an arm with a seed."""
    return f"train-{arm}-{seed}"


def role_of(arm: Arm) -> str:
    """The stream through which an arm reads its synthetic text."""
    return "megadoc" if arm.layout == "megadoc" else "synthetic"
