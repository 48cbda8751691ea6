"""The stage instances of an experiment and how they feed one another: the whole method on one page."""

from dataclasses import replace
from functools import partial
from typing import Any

from etils import epath

from sbp_jax.accounting import charges
from sbp_jax.arms import SUFFIX, Source, TrainedArm, source, suffix, trained_arms
from sbp_jax.config import BASE_ARM, Arm, Experiment
from sbp_jax.data import own_pairs
from sbp_jax.embedding import models
from sbp_jax.nodes import Node, Nodes, same
from sbp_jax.quality import questions
from sbp_jax.report.source import to_source
from sbp_jax.stages import (
    ask,
    copies,
    embed,
    filter,
    group,
    import_pairs,
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

WATCHED = "text/"  # begins the role of a text set's rows


def graph(experiment: Experiment) -> dict[str, Node]:
    """All stage instances of an experiment by name, each after its inputs."""
    nodes = Nodes(experiment)
    _real_documents(nodes)
    watched = _held_out(nodes)

    # Arms that need the real rows alone; the first run of the repetition arm is the base model.
    early = [entry for entry in nodes.arms if _is_early(entry.arm)]
    for entry in early:
        _arm(nodes, entry, watched)

    # Step 1: pairs.
    _related_documents(nodes)
    _groups(nodes, "related")

    # Step 2: the synthesizer. Step 3: synthetic documents of each kind that an arm reads, and the arms that do.
    _synthesizer(nodes, "related", None)
    sources = _sources(nodes.arms)
    for kind in SUFFIX:
        if (kind, None) in sources:
            _synthetic(nodes, (kind, None), sources[kind, None])
    for entry in nodes.arms:
        if entry not in early:
            origin = source(entry.arm)
            if origin is not None and f"synthetic{suffix(*origin)}" not in nodes:
                _synthetic(nodes, origin, sources[origin])
            _arm(nodes, entry, watched)

    # Behind the arms, which no judge that is down keeps from training.
    for origin in sources:
        _quality(nodes, origin)
    found = _scores(nodes, watched)
    _report(nodes, sources, found)
    return nodes


def train_name(arm: str, seed: int) -> str:
    """The instance that trains an arm with a seed."""
    return f"train-{arm}-{seed}"


def _real_documents(nodes: Nodes) -> None:
    """Real documents, their splits and tokens, and the packed rows that are trained on or choose a checkpoint."""
    experiment, settings = nodes.experiment, nodes.settings
    files = partial(documents.source_files, experiment.corpus.paths)
    nodes.add("documents", ingest, {}, {"corpus": experiment.corpus}, files)
    nodes.add("splits", split, same("documents"), {"splits": experiment.splits})
    own = None if settings.path is None else partial(_files, settings.path)
    nodes.add("tokenizer", train_tokenizer, same("documents", "splits"), {"tokenizer": settings}, own)
    nodes.add("tokens", tokenize, same("documents", "tokenizer"), {"settings": settings})
    inputs = same("tokens", "splits", "documents", "tokenizer")
    for stream in ("capped", "oracle", "validation"):
        config = {"stream": stream, "context": experiment.training.context, "settings": settings}
        nodes.add(f"rows-{stream}", pack, inputs, config)


def _held_out(nodes: Nodes) -> dict[str, str]:
    """What the arms are scored on: the test documents, and the user's text sets, whose rows are given by role."""
    experiment, settings = nodes.experiment, nodes.settings
    context = experiment.training.context
    windows = {"context": context, "stride": experiment.evaluation.stride or context, "settings": settings}
    nodes.add("rows-test", window, same("tokens", "splits", "documents", "tokenizer"), windows)
    watched = {}
    for chosen in experiment.evaluation.texts:
        found = nodes.add(f"texts-{chosen.name}", texts, {}, {"texts": chosen}, partial(texts.files, chosen))
        inputs = {"documents": found, "tokenizer": "tokenizer"}
        tokens = nodes.add(f"tokens-text-{chosen.name}", tokenize, inputs, {"settings": settings})
        rows = nodes.add(f"rows-text-{chosen.name}", window, inputs | {"tokens": tokens}, windows)
        watched[f"{WATCHED}{chosen.name}"] = rows
        nodes.add(f"copies-{chosen.name}", copies, {"texts": found, **same("documents", "splits")}, {})
    return watched


def _arm(nodes: Nodes, entry: TrainedArm, watched: dict[str, str]) -> None:
    """One model for each seed of an arm."""
    arm, experiment = entry.arm, nodes.experiment
    real = f"rows-{arm.real}" + ("-in-context" if arm.layout == "in_context" else "")
    inputs = {"real": real, "oracle": "rows-oracle", "validation": "rows-validation", "tokenizer": "tokenizer"}
    if (origin := source(arm)) is not None:
        inputs[_stream(arm)] = f"rows-{_stream(arm)}{suffix(*origin)}"
    decay, training = arm.weight_decay, experiment.training
    training = training if decay is None else replace(training, weight_decay=decay)
    config: dict[str, Any] = {"settings": nodes.settings, "model": experiment.model, "training": training}
    config["synthetic_share"] = arm.synthetic_share
    if arm.order != "uniform":  # in the recipe where it is not as usual, as what follows
        config["order"] = arm.order
    if arm.epochs is not None:
        config["epochs"] = arm.epochs
    if arm.flops_of is not None:
        config["charged"] = charges.entries(nodes, train_name(arm.flops_of, experiment.seeds[0]))
        inputs |= charges.roles(config["charged"])
    aside = {"rows_while_training": experiment.evaluation.rows_while_training} if watched else {}
    for seed in entry.seeds:
        nodes.add(train_name(arm.name, seed), train, inputs, config | {"seed": seed}, watched=watched, aside=aside)


def _is_early(arm: Arm) -> bool:
    """Whether an arm needs nothing but the rows of real documents as they come."""
    return source(arm) is None and arm.layout == "documents" and arm.flops_of is None


def _related_documents(nodes: Nodes) -> None:
    """Embeddings, neighbours and pairs of the capped set, and its rows with related documents side by side."""
    experiment = nodes.experiment
    inputs = same("documents", "splits")
    config: dict[str, Any] = {"embedding": experiment.embedding}
    if _embeds_itself(experiment):
        inputs |= {"base": _base(nodes), "tokenizer": "tokenizer"}
        config |= {"model": experiment.model, "settings": nodes.settings}
    nodes.add("embeddings", embed, inputs, config, partial(models.files, experiment.embedding))
    own = experiment.pairs.path
    if own is None:
        nodes.add("neighbors", neighbors, same("embeddings"), {"neighbors": experiment.neighbors})
    else:
        files = partial(own_pairs.files, own)
        nodes.add("neighbors", import_pairs, same("documents", "splits"), {}, files, aside={"path": own})
    evaluations = _evaluations(experiment)
    nodes.add("screened", screen, same("documents", "splits"), {"evaluations": evaluations}, evaluations.files)
    config = {"pairs": experiment.pairs, "context": experiment.tuning.context}
    if own is not None:  # what is related is not a matter of similarity
        config["window"] = False
    nodes.add("pairs", pairs, same("neighbors", "screened", "tokens"), config)
    if any(entry.arm.layout == "in_context" for entry in nodes.arms):
        inputs = same("tokens", "splits", "documents", "tokenizer", "neighbors")
        config = {"stream": "capped", "context": experiment.training.context, "settings": nodes.settings}
        nodes.add("rows-capped-in-context", pack, inputs, config)


def _groups(nodes: Nodes, kind: str) -> None:
    """Pairs for synthesizers, each grouped with further documents that are read, and the rows of these."""
    ending, experiment = SUFFIX[kind], nodes.experiment
    tuning, rules = experiment.tuning, experiment.pairs
    if kind == "random":  # the control: as many pairs from the same seeds, of documents that are not related
        config: dict[str, Any] = {"neighbors": experiment.neighbors, "threshold": rules.threshold}
        config["context"] = tuning.context
        inputs = {"like": "pairs", **same("embeddings", "tokens")}
        nodes.add(f"neighbors{ending}", neighbors, inputs, config)
        inputs = {"neighbors": f"neighbors{ending}", **same("screened", "tokens")}
        nodes.add(f"pairs{ending}", pairs, inputs, {"pairs": rules, "context": tuning.context, "window": False})
    config = {
        "conditioning": tuning.conditioning,
        "near_duplicate": rules.near_duplicate,
        "common": rules.common,
        "validation": tuning.validation,
        "context": tuning.context,
    }
    nodes.add(f"groups{ending}", group, {"pairs": f"pairs{ending}", **same("screened", "tokens")}, config)
    for part in ("train", "validation"):
        config = {"settings": nodes.settings, "part": part, "context": tuning.context}
        inputs = {"groups": f"groups{ending}", **same("tokens", "tokenizer")}
        nodes.add(f"rows-pairs-{part}{ending}", pack_pairs, inputs, config)


def _synthesizer(nodes: Nodes, kind: str, start: str | None) -> None:
    """The model of an arm, tuned on pairs; None: the base model, or the user's own."""
    experiment, ending = nodes.experiment, SUFFIX[kind]
    tuning, own = experiment.tuning, None
    inputs = {part: f"rows-pairs-{rows}{ending}" for part, rows in (("pairs", "train"), ("validation", "validation"))}
    inputs |= same("tokenizer")
    if start is not None or tuning.base is None:
        inputs["base"] = _base(nodes, start)
    else:
        own = partial(tune.base_files, tuning, experiment.model, nodes.settings)
    config = {"settings": nodes.settings, "model": experiment.model, "tuning": tuning}
    nodes.add(f"synthesizer{suffix(kind, start)}", tune, inputs, config, own)


def _sources(arms: list[TrainedArm]) -> dict[Source, dict[str, float]]:
    """Where the arms' synthetic text comes from, with the greatest share of each stream that arms read it in.

    The greatest of all says how much is written.
    """
    found: dict[Source, dict[str, float]] = {}
    for arm in (entry.arm for entry in arms):
        if (origin := source(arm)) is not None:
            streams = found.setdefault(origin, {})
            streams[_stream(arm)] = max(streams.get(_stream(arm), 0.0), arm.synthetic_share)
    return found


def _synthetic(nodes: Nodes, origin: Source, streams: dict[str, float]) -> None:
    """Synthetic documents, all of them and those kept, and the rows of these.

    Without pairs nothing is read before a document is written, and the model need not be a synthesizer.
    """
    (kind, start), experiment, settings = origin, nodes.experiment, nodes.settings
    ending, context = suffix(kind, start), experiment.training.context
    config: dict[str, Any] = {"settings": settings, "decoder": experiment.model, "synthesis": experiment.synthesis}
    config |= {"share": max(streams.values()), "training_tokens": experiment.training.tokens}
    inputs = {"capped": "rows-capped", "oracle": "rows-oracle", **same("tokens", "splits", "documents", "tokenizer")}
    if kind == "none":  # the control: what the model of an arm writes of itself
        inputs["model"] = _base(nodes, start)
        config |= {"conditioning": 0, "context": context}
    else:
        if f"groups{SUFFIX[kind]}" not in nodes:
            _groups(nodes, kind)
        if f"synthesizer{ending}" not in nodes:
            _synthesizer(nodes, kind, start)
        inputs |= {"model": f"synthesizer{ending}", "pairs": f"pairs{SUFFIX[kind]}"}
        config |= {"conditioning": experiment.tuning.conditioning, "context": experiment.tuning.context}
    nodes.add(f"synthesized{ending}", synthesize, inputs, config)
    evaluations = _evaluations(experiment)
    inputs = {"synthesized": f"synthesized{ending}", **same("documents", "splits", "screened")}
    config = {"evaluations": evaluations, "filters": experiment.filters}
    kept = nodes.add(f"synthetic{ending}", filter, inputs, config, evaluations.files)
    inputs = {"documents": kept, "tokenizer": "tokenizer"}
    tokens = nodes.add(f"tokens-synthetic{ending}", tokenize, inputs, {"settings": settings})
    for stream in sorted(streams, reverse=True):
        config = {"stream": stream, "context": context, "settings": settings}
        if stream == "synthetic":
            inputs = {"tokens": tokens, "documents": kept, "tokenizer": "tokenizer"}
        else:
            inputs = {"synthetic": kept, "synthetic_tokens": tokens, **same("tokens", "documents", "tokenizer")}
        nodes.add(f"rows-{stream}{ending}", pack, inputs, config)


def _quality(nodes: Nodes, origin: Source) -> None:
    """Synthetic documents beside real ones, and what a judge says of them, where there is one."""
    (kind, start), ending, experiment = origin, suffix(*origin), nodes.experiment
    inputs = {"synthesized": f"synthesized{ending}", "synthetic": f"synthetic{ending}"}
    inputs |= same("documents", "splits", "pairs")
    asked, verdicts = experiment.quality.judge, {}
    if asked.url is not None:
        config: dict[str, Any] = {"judge": asked, "prompts": questions.hashes()}
        verdicts["judge"] = nodes.add(f"judge{ending}", judge, inputs, config)
    inputs = inputs | same("embeddings", "tokenizer") | verdicts
    evaluations = _evaluations(experiment, _task_files(experiment))
    about = {"pairs": kind, "base": start, "suffix": ending}
    config = {"measured": experiment.quality.documents, "about": about, "embedding": experiment.embedding}
    config |= {"settings": nodes.settings, "evaluations": evaluations}
    if _embeds_itself(experiment):
        inputs["base"] = _base(nodes)
        config["model"] = experiment.model
    files = partial(models.files, experiment.embedding)
    nodes.add(f"quality{ending}", quality, inputs, config, lambda: [*files(), *evaluations.files()])


def _scores(nodes: Nodes, watched: dict[str, str]) -> dict[str, str]:
    """What every run is scored on, those of a sweep on the test documents alone.

    The runs and their scores are given by the roles they play in the report.
    """
    experiment, found = nodes.experiment, {}
    evaluation = experiment.evaluation
    for entry in trained_arms(experiment):
        for seed in entry.seeds:
            run, trained = f"{entry.arm.name}/{seed}", train_name(entry.arm.name, seed)
            ending = run.replace("/", "-")
            config: dict[str, Any] = {"model": experiment.model, "training": experiment.training}
            found[f"trained/{run}"] = trained
            inputs = {"trained": trained, "rows": "rows-test"}
            found[f"scored/{run}"] = nodes.add(f"score-{ending}", score, inputs, config)
            if entry.sweep is not None:
                continue
            for role, rows in watched.items():
                name, inputs = f"score-{role.removeprefix(WATCHED)}-{ending}", {"trained": trained, "rows": rows}
                found[f"{role}/{run}"] = nodes.add(name, score, inputs, config)
            for task in evaluation.tasks:
                asked = local.Asked(task, evaluation.fewshot, evaluation.limit, evaluation.data)
                config = {"model": experiment.model, "asked": asked, "harness": harness.version()}
                name, files = f"task-{local.plain(task)}-{ending}", partial(local.files, asked)
                found[f"task/{local.plain(task)}/{run}"] = nodes.add(name, ask, {"trained": trained}, config, files)
    return found


def _report(nodes: Nodes, sources: dict[Source, dict[str, float]], found: dict[str, str]) -> None:
    """The report reads nearly everything; what an arm is charged for as well."""
    experiment = nodes.experiment
    inputs = same("documents", "splits", "neighbors", "screened", "pairs", "synthesizer", "tokenizer") | found
    if ("related", None) in sources:
        inputs |= same("synthesized", "synthetic")
    inputs |= {f"copies/{chosen.name}": f"copies-{chosen.name}" for chosen in experiment.evaluation.texts}
    for origin in sources:
        inputs[f"quality/{suffix(*origin)}"] = f"quality{suffix(*origin)}"
    runs = [(entry.arm.name, train_name(entry.arm.name, entry.seeds[0])) for entry in trained_arms(experiment)]
    charged = tuple((arm, charges.entries(nodes, run)) for arm, run in runs)
    for _, entries in charged:
        inputs |= charges.roles(entries)
    config = {"experiment": experiment, "source": to_source(experiment), "charges": charged}
    nodes.add("report", report, inputs, config)


def _base(nodes: Nodes, arm: str | None = None) -> str:
    """The run whose model is started from: an arm's with the first seed; None: the base model."""
    return train_name(arm or BASE_ARM, nodes.experiment.seeds[0])


def _stream(arm: Arm) -> str:
    """The stream through which an arm reads its synthetic text."""
    return "megadoc" if arm.layout == "megadoc" else "synthetic"


def _embeds_itself(experiment: Experiment) -> bool:
    return experiment.embedding.model == models.SELF and experiment.embedding.vectors is None


def _evaluations(experiment: Experiment, more: tuple[str, ...] = ()) -> contamination.Evaluations:
    return contamination.Evaluations(tuple(dict.fromkeys((*experiment.pairs.decontaminate, *more))))


def _task_files(experiment: Experiment) -> tuple[str, ...]:
    """The local files of the tasks that the arms are asked, whose items documents should not hold."""
    evaluation = experiment.evaluation
    if evaluation.data is None or not epath.Path(evaluation.data).expanduser().is_dir():
        return ()  # that it is missing is told where it is needed
    asked = (local.Asked(task, data=evaluation.data) for task in evaluation.tasks)
    return tuple(str(file) for task in asked for file in local.files(task))


def _files(path: str) -> list[epath.Path]:
    return [epath.Path(path).expanduser()]
