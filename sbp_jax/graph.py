"""The stage instances of an experiment and how they feed one another: the whole method on one page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

from etils import epath

from sbp_jax.artifacts import Artifact
from sbp_jax.config import BASE_ARM, Experiment
from sbp_jax.embedding import models
from sbp_jax.report.source import to_source
from sbp_jax.stages import (
    ask,
    embed,
    filter,
    group,
    ingest,
    neighbors,
    pack,
    pack_pairs,
    pairs,
    report,
    score,
    screen,
    split,
    synthesize,
    tokenize,
    train,
    train_tokenizer,
    tune,
)
from sbp_jax.tasks import harness, local
from sbp_jax.text import contamination, documents

SUFFIX = {"related": "", "random": "-random", "none": "-self"}  # of the instances behind an arm, by `Arm.pairs`


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
    """

    name: str
    stage: str
    version: int
    run: Callable[..., Artifact]
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    files: Callable[[], list[epath.Path]] | None = None
    all_hosts: bool = False


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
    ) -> str:
        nodes[name] = Node(
            *(name, stage.__name__.rpartition(".")[2], stage.VERSION, stage.run, inputs, config, files),
            all_hosts=stage in (train, tune, score, ask, embed, neighbors, synthesize),
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
    for stream in ("capped", "oracle", "validation", "test"):
        inputs = {"tokens": tokens, "splits": splits, "documents": real, "tokenizer": tokenizer}
        add(f"rows-{stream}", pack, inputs, {"stream": stream, "context": context, "settings": settings})

    # Arms that need no synthetic text; the first run of the repetition arm is the base model.
    def add_arms(synthetic: bool) -> None:
        for arm in experiment.arms:
            if (arm.synthetic_share > 0) != synthetic:
                continue
            for seed in experiment.seeds:
                inputs = {
                    "real": f"rows-{arm.real}",
                    "oracle": "rows-oracle",
                    "validation": "rows-validation",
                    "tokenizer": tokenizer,
                }
                if synthetic:
                    inputs["synthetic"] = f"rows-synthetic{SUFFIX[arm.pairs]}"
                config = {"settings": settings, "model": experiment.model, "training": experiment.training}
                add(
                    f"train-{arm.name}-{seed}",
                    train,
                    inputs,
                    config | {"synthetic_share": arm.synthetic_share, "seed": seed},
                )

    add_arms(synthetic=False)
    base = f"train-{BASE_ARM}-{experiment.seeds[0]}"

    # Step 1: pairs.
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

    def add_synthesizer(chosen: str, suffix: str) -> str:
        """Step 2: the synthesizer, tuned on some pairs, each grouped with further documents that are read."""
        tuning, rules = experiment.tuning, experiment.pairs
        config: dict[str, Any] = {
            "conditioning": tuning.conditioning,
            "near_duplicate": rules.near_duplicate,
            "common": rules.common,
            "validation": tuning.validation,
            "context": tuning.context,
        }
        inputs = {"pairs": chosen, "screened": screened, "tokens": tokens}
        grouped = add(f"groups{suffix}", group, inputs, config)
        for part in ("train", "validation"):
            config = {"settings": settings, "part": part, "context": tuning.context}
            inputs = {"groups": grouped, "tokens": tokens, "tokenizer": tokenizer}
            add(f"rows-pairs-{part}{suffix}", pack_pairs, inputs, config)
        inputs = {
            "pairs": f"rows-pairs-train{suffix}",
            "validation": f"rows-pairs-validation{suffix}",
            "tokenizer": tokenizer,
        }
        if tuning.base is None:
            inputs["base"], own_base = base, None
        else:
            own_base = partial(tune.base_files, tuning, experiment.model, settings)
        config = {"settings": settings, "model": experiment.model, "tuning": tuning}
        return add(f"synthesizer{suffix}", tune, inputs, config, own_base)

    def add_synthetic(model: str, chosen: str | None, share: float, suffix: str) -> tuple[str, str]:
        """Step 3: synthetic documents, all of them and those kept, and the rows of these.

        Without pairs nothing is read before a document is written, and the model need not be a synthesizer.
        """
        inputs = {"model": model, "capped": "rows-capped", "oracle": "rows-oracle", "tokens": tokens}
        inputs |= {"splits": splits, "documents": real, "tokenizer": tokenizer}
        config: dict[str, Any] = {
            "settings": settings,
            "decoder": experiment.model,
            "synthesis": experiment.synthesis,
            "conditioning": 0,
            "context": context,
            "share": share,
            "training_tokens": experiment.training.tokens,
        }
        if chosen is not None:
            inputs["pairs"] = chosen
            config |= {"conditioning": experiment.tuning.conditioning, "context": experiment.tuning.context}
        synthesized = add(f"synthesized{suffix}", synthesize, inputs, config)
        inputs = {"synthesized": synthesized, "documents": real, "splits": splits, "screened": screened}
        config = {"evaluations": evaluations, "filters": experiment.filters}
        kept = add(f"synthetic{suffix}", filter, inputs, config, evaluations.files)
        inputs = {"documents": kept, "tokenizer": tokenizer}
        tokenized = add(f"tokens-synthetic{suffix}", tokenize, inputs, {"settings": settings})
        inputs = {"tokens": tokenized, "documents": kept, "tokenizer": tokenizer}
        config = {"stream": "synthetic", "context": context, "settings": settings}
        add(f"rows-synthetic{suffix}", pack, inputs, config)
        return synthesized, kept

    synthesizer = add_synthesizer(related, SUFFIX["related"])
    shares = {
        kind: max((arm.synthetic_share for arm in experiment.arms if arm.pairs == kind), default=0.0) for kind in SUFFIX
    }
    if shares["related"] > 0:
        synthesized, synthetic = add_synthetic(synthesizer, related, shares["related"], SUFFIX["related"])
    if shares["random"] > 0:  # the control: as many pairs from the same seeds, of documents that are not related
        suffix = SUFFIX["random"]
        config = {"neighbors": experiment.neighbors, "threshold": experiment.pairs.threshold}
        drawn = add(f"neighbors{suffix}", neighbors, {"embeddings": embeddings, "like": related}, config)
        inputs = {"neighbors": drawn, "screened": screened, "tokens": tokens}
        config = {"pairs": experiment.pairs, "context": experiment.tuning.context, "window": False}
        unrelated = add(f"pairs{suffix}", pairs, inputs, config)
        add_synthetic(add_synthesizer(unrelated, suffix), unrelated, shares["random"], suffix)
    if shares["none"] > 0:  # the control: what the base model writes of itself
        add_synthetic(base, None, shares["none"], SUFFIX["none"])
    add_arms(synthetic=True)

    # Scores and the report.
    evaluation = experiment.evaluation
    inputs = {"documents": real, "splits": splits, "neighbors": near, "screened": screened, "pairs": related}
    inputs["synthesizer"] = synthesizer
    if shares["related"] > 0:
        inputs |= {"synthesized": synthesized, "synthetic": synthetic}
    for arm in experiment.arms:
        for seed in experiment.seeds:
            trained = f"train-{arm.name}-{seed}"
            config = {"model": experiment.model, "training": experiment.training}
            scored = add(f"score-{arm.name}-{seed}", score, {"trained": trained, "test": "rows-test"}, config)
            inputs |= {f"trained/{arm.name}/{seed}": trained, f"scored/{arm.name}/{seed}": scored}
            for task in experiment.evaluation.tasks:
                asked = local.Asked(task, evaluation.fewshot, evaluation.limit, evaluation.data)
                config = {"model": experiment.model, "asked": asked, "harness": harness.version()}
                name = f"task-{local.plain(task)}-{arm.name}-{seed}"
                add(name, ask, {"trained": trained}, config, partial(local.files, asked))
    add("report", report, inputs, {"experiment": experiment, "source": to_source(experiment)})
    return nodes
