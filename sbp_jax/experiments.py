"""Experiments from their files: loading, overriding, shrinking, checking, and the numbers that follow."""

import dataclasses
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from sbp_jax.arm_checks import NAME, NAME_RULE, check_arms
from sbp_jax.config import Corpus, Evaluation, Experiment
from sbp_jax.errors import SbpError
from sbp_jax.overrides import check_types, override
from sbp_jax.text import record_text
from sbp_jax.training.optimizer import optimizer

LEAST_CHARACTERS = 50  # of a part of a document


def load(path: str, assignments: list[str] | tuple[str, ...] = (), tiny: bool = False) -> Experiment:
    """The experiment of a config file: its `get_config()`, or `tiny()`, with overrides applied and checked.

    Raises:
      SbpError: the file is missing or is no config, an override does not fit, or a value makes no sense.
    """
    module = load_module(path)
    name = "tiny" if tiny else "get_config"
    try:
        experiment = getattr(module, name)() if hasattr(module, name) else None
    except (Exception, SystemExit) as error:
        raise SbpError(f"the config file {path} does not run: {type(error).__name__}: {error}") from error
    if not isinstance(experiment, Experiment):
        raise SbpError(f"the config file {path} has no function {name}() that returns an Experiment")
    for assignment in assignments:
        experiment = override(experiment, assignment)
    check(experiment)
    return experiment


def load_module(path: str) -> ModuleType:
    """A config file as a module.

    Raises:
      SbpError: the file is missing, is no Python file, or does not run.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise SbpError(f"there is no config file {path}; give the path of one, such as configs/quickstart.py")
    spec = importlib.util.spec_from_file_location(f"sbp_config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.absolute()))  # a variant imports the config beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise SbpError(f"the config file {path} does not run: {type(error).__name__}: {error}") from error
    return module


def shrink(experiment: Experiment, corpus: Corpus) -> Experiment:
    """The same experiment at a size that a CPU runs in about a minute, on a small corpus."""
    small_steps: dict[str, Any] = {"context": 96, "batch_rows": 8, "evaluate_every": 10, "peak_lr": 3e-3}
    return replace(
        experiment,
        name=f"{experiment.name}-tiny",
        corpus=replace(corpus, sample=0.06),
        splits=replace(experiment.splits, validation=0.05, test=0.05, oracle=1.0, capped=0.5),
        tokenizer=replace(experiment.tokenizer, path=None, vocab_size=512),
        model=replace(experiment.model, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64, dtype="float32"),
        training=replace(experiment.training, tokens=30 * 8 * 96, **small_steps),
        tuning=replace(experiment.tuning, base=None, epochs=1.0, validation=0.2, **(small_steps | {"context": 512})),
        embedding=replace(experiment.embedding, max_tokens=64, whiten=False),
        neighbors=replace(experiment.neighbors, top_k=10),
        pairs=replace(experiment.pairs, threshold=0.4, minimum=20),
        synthesis=replace(experiment.synthesis, max_new_tokens=64, oversample=5.0, documents_per_shard=64),
        filters=replace(
            experiment.filters,
            unfinished="keep",
            min_words=1,
            max_repetition=0.9,
            max_copied=0.9,
            max_seed_overlap=0.9,
            max_held_out=0.9,
        ),
        quality=replace(experiment.quality, documents=40),
        seeds=experiment.seeds[:1],
        note="This is the tiny variant: it shows that the pipeline runs from end to end, and nothing else.",
        evaluation=Evaluation(),
        execution=replace(experiment.execution, slots=32, accumulate=1),
    )


def check(experiment: Experiment) -> None:
    """Raises `SbpError` for values that cannot work, naming the field and what it may be."""
    check_types(experiment)
    splits, model, execution = experiment.splits, experiment.model, experiment.execution
    held_out = splits.validation + splits.test
    _demand(held_out < 1, f"splits.validation + splits.test is {held_out:g}; it leaves nothing to train on")
    fractions = {
        "corpus.sample": experiment.corpus.sample,
        "corpus.max_skipped": experiment.corpus.max_skipped,
        "splits.validation": splits.validation,
        "splits.test": splits.test,
        "splits.capped": splits.capped,
        "splits.oracle": splits.oracle,
        "splits.near_duplicate": splits.near_duplicate,
        "pairs.near_duplicate": experiment.pairs.near_duplicate,
        "pairs.length_ratio": experiment.pairs.length_ratio,
        "tuning.validation": experiment.tuning.validation,
        "synthesis.top_p": experiment.synthesis.top_p,
        "training.warmup": experiment.training.warmup,
        "tuning.warmup": experiment.tuning.warmup,
        "training.decay": experiment.training.decay,
        "tuning.decay": experiment.tuning.decay,
        "filters.max_repetition": experiment.filters.max_repetition,
        "filters.max_copied": experiment.filters.max_copied,
        "filters.max_seed_overlap": experiment.filters.max_seed_overlap,
        "filters.max_held_out": experiment.filters.max_held_out,
        "filters.near_sibling": experiment.filters.near_sibling,
        "filters.near_duplicate": experiment.filters.near_duplicate,
    } | {f"arms.{arm.name}.synthetic_share": arm.synthetic_share for arm in experiment.arms}
    for name in ("splits.near_duplicate", "pairs.near_duplicate", "filters.near_duplicate", "filters.near_sibling"):
        _demand(fractions[name] > 0, f"{name} is {fractions[name]:g}; at 0 every document is a copy of every other")
    for name, value in fractions.items():
        _demand(0.0 <= value <= 1.0, f"{name} is {value:g}; it is a fraction from 0 to 1")
    positive = {
        "corpus.documents_per_shard": experiment.corpus.documents_per_shard,
        "corpus.sample": experiment.corpus.sample,
        "splits.validation": splits.validation,
        "splits.test": splits.test,
        "splits.capped": splits.capped,
        "tuning.validation": experiment.tuning.validation,
        "synthesis.oversample": experiment.synthesis.oversample,
        "model.norm_epsilon": model.norm_epsilon,
        "model.rope_base": model.rope_base,
        "neighbors.top_k": experiment.neighbors.top_k,
        "neighbors.audited": experiment.neighbors.audited,
        "pairs.common": experiment.pairs.common,
        "filters.max_seed_run": experiment.filters.max_seed_run,
        "synthesis.max_new_tokens": experiment.synthesis.max_new_tokens,
        "synthesis.documents_per_shard": experiment.synthesis.documents_per_shard,
        "synthesis.samples": experiment.synthesis.samples,
        "tuning.conditioning": experiment.tuning.conditioning,
        "tuning.epochs": experiment.tuning.epochs,
        "embedding.max_tokens": experiment.embedding.max_tokens,
        "execution.slots": execution.slots,
        "execution.decode_steps": execution.decode_steps,
        "execution.embed_batch": execution.embed_batch,
        "execution.keep_last": execution.keep_last,
        "execution.profile_steps": execution.profile_steps,
        "execution.stall_seconds": execution.stall_seconds,
    }
    positive |= {} if execution.workers is None else {"execution.workers": execution.workers}
    characters = experiment.corpus.max_characters
    short = f"corpus.max_characters is {characters}; parts of documents have {LEAST_CHARACTERS} characters or more"
    _demand(characters is None or characters >= LEAST_CHARACTERS, short)
    for section in ("training", "tuning"):
        values = getattr(experiment, section)
        for name in ("context", "batch_rows", "peak_lr", "clip", "evaluate_every"):
            positive[f"{section}.{name}"] = getattr(values, name)
        _demand(0 <= values.dropout < 1, f"{section}.dropout is {values.dropout:g}; it is a fraction from 0 to below 1")
        for name in ("z_loss", "weight_decay", "final_lr"):
            value = getattr(values, name)
            _demand(value >= 0, f"{section}.{name} is {value:g}; it may not be negative")
        for name in ("beta1", "beta2"):
            value = getattr(values, name)
            _demand(0 <= value < 1, f"{section}.{name} is {value:g}; it is a fraction from 0 to below 1")
        optimizer(values)
        spikes = values.skip_spikes
        _demand(spikes is None or spikes > 1, f"{section}.skip_spikes is {spikes}; it is a factor above 1, or none")
        pieces = execution.accumulate
        _demand(
            pieces > 0 and values.batch_rows % pieces == 0,
            f"execution.accumulate is {pieces}; it must divide {section}.batch_rows ({values.batch_rows})",
        )
    _demand(
        experiment.tuning.base is None or experiment.tokenizer.path is not None,
        f"tuning.base is {experiment.tuning.base}, whose tokens are not those of a tokenizer trained here;"
        f" set tokenizer.path={experiment.tuning.base}/tokenizer.json",
    )
    for name in ("width", "layers", "heads", "kv_heads", "head_dim", "ffn"):
        positive[f"model.{name}"] = getattr(model, name)
    judge = experiment.quality.judge
    positive["quality.documents"] = experiment.quality.documents
    for name in ("documents", "characters", "max_tokens", "at_once", "seconds", "attempts"):
        positive[f"quality.judge.{name}"] = getattr(judge, name)
    _demand(
        judge.url is None or judge.url.startswith(("http://", "https://")),
        f"quality.judge.url is {judge.url}; it is the address of an OpenAI-compatible endpoint, such as"
        " http://localhost:8000/v1",
    )
    _demand(
        judge.url is None or bool(judge.model),
        "quality.judge.url is set and quality.judge.model is not; name the model as the endpoint knows it",
    )
    optional = {
        "training.tokens": experiment.training.tokens,
        "embedding.dimensions": experiment.embedding.dimensions,
        "pairs.max_targets": experiment.pairs.max_targets,
        "pairs.same_source": experiment.pairs.same_source,
        "filters.max_words": experiment.filters.max_words,
        "neighbors.leaves": experiment.neighbors.leaves,
        "neighbors.leaves_to_search": experiment.neighbors.leaves_to_search,
        "neighbors.reorder": experiment.neighbors.reorder,
        "execution.checkpoint_every": execution.checkpoint_every,
        "execution.cache_tokens": execution.cache_tokens,
        "execution.keep_every": execution.keep_every,
        "execution.profile_from": execution.profile_from,
        "model.rope_scaling.factor": None if model.rope_scaling is None else model.rope_scaling.factor,
    }
    positive |= {name: value for name, value in optional.items() if value is not None}
    for name, value in positive.items():
        _demand(value > 0, f"{name} is {value:g}; it must be above 0")
    _demand(
        splits.capped <= splits.oracle,
        f"splits.capped ({splits.capped:g}) is above splits.oracle ({splits.oracle:g}), which it lies inside of",
    )
    _demand(
        model.heads % model.kv_heads == 0,
        f"model.heads ({model.heads}) must be a multiple of model.kv_heads ({model.kv_heads})",
    )
    sizes = dataclasses.asdict(execution.mesh)
    _demand(
        all(size >= 1 or size == -1 for size in sizes.values()) and list(sizes.values()).count(-1) <= 1,
        f"execution.mesh is {sizes}; sizes are at least 1, and one of them may be -1 for what the others leave",
    )
    _demand(model.head_dim % 2 == 0, f"model.head_dim is {model.head_dim}; RoPE turns pairs, so it must be even")
    choices = {
        "splits.by": (splits.by, ("text", "source")),
        "model.dtype": (model.dtype, ("float32", "bfloat16")),
        "embedding.dtype": (experiment.embedding.dtype, ("float32", "bfloat16")),
        "neighbors.backend": (experiment.neighbors.backend, ("auto", "scann", "exact", "bucketed")),
        "training.schedule": (experiment.training.schedule, ("cosine", "wsd")),
        "tuning.schedule": (experiment.tuning.schedule, ("cosine", "wsd")),
        "execution.remat": (execution.remat, ("none", "full", "dots")),
        "execution.attention": (execution.attention, ("auto", "xla", "splash", "cudnn")),
        "execution.engine": (execution.engine, ("jax", "vllm")),
        "filters.unfinished": (experiment.filters.unfinished, ("drop", "trim", "keep")),
        "filters.index": (experiment.filters.index, ("exact", "bloom", "auto")),
    }
    for name, (chosen, possible) in choices.items():
        _demand(chosen in possible, f"{name} is {chosen}; it may be {', '.join(possible[:-1])} or {possible[-1]}")
    embedding, pairs, filters = experiment.embedding, experiment.pairs, experiment.filters
    _demand(
        filters.max_words is None or filters.min_words <= filters.max_words,
        f"filters.min_words ({filters.min_words}) is above filters.max_words ({filters.max_words}): nothing is kept",
    )
    _demand(
        not (embedding.whiten and embedding.vectors),
        "embedding.whiten is for the vectors of a model; whiten those in embedding.vectors before they are given",
    )
    _demand(
        pairs.threshold <= pairs.maximum,
        f"pairs.threshold ({pairs.threshold:g}) is above pairs.maximum ({pairs.maximum:g}): no pair lies between them",
    )
    _demand(experiment.synthesis.temperature >= 0, "synthesis.temperature is negative; 0 is greedy, 1 the model's own")
    _demand(experiment.synthesis.top_p > 0, "synthesis.top_p is 0; 1 keeps every token")
    _demand(experiment.synthesis.top_k >= 0, "synthesis.top_k is negative; 0 keeps every token")
    if (pattern := experiment.corpus.source_pattern) is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise SbpError(f"corpus.source_pattern is {pattern!r}, no regular expression: {error}") from error
    _demand(bool(experiment.corpus.paths), "corpus.paths is empty; name the files or folders of your corpus")
    _demand(bool(experiment.seeds), "seeds is empty; give at least one, such as seeds=0")
    _demand(bool(re.fullmatch(NAME, experiment.name)), f"the name {experiment.name!r} must be {NAME_RULE}")
    check_arms(experiment)
    _check_texts(experiment)
    seeds = {"seeds": experiment.seeds, "splits.seed": (splits.seed,), "synthesis.seed": (experiment.synthesis.seed,)}
    for name, values in seeds.items():
        _demand(all(0 <= seed < 2**32 for seed in values), f"{name} must lie between 0 and {2**32 - 1}")
    _demand(len(set(experiment.seeds)) == len(experiment.seeds), "seeds has the same number twice")


def _check_texts(experiment: Experiment) -> None:
    evaluation, context = experiment.evaluation, experiment.training.context
    names = [texts.name for texts in evaluation.texts]
    _demand(len(set(names)) == len(names), f"two text sets have one name: {', '.join(names)}")
    for texts in evaluation.texts:
        field = f"evaluation.texts.{texts.name}"
        _demand(bool(re.fullmatch(NAME, texts.name)), f"the name {texts.name!r} must be {NAME_RULE}")
        _demand(texts.name != "test", f"{field}: test is the name of the corpus's own test documents; choose another")
        _demand(
            bool(texts.paths),
            f"{field}.paths is empty; name the files or folders of the set (the sets are {', '.join(names)})",
        )
        _demand(0 <= texts.max_skipped <= 1, f"{field}.max_skipped is {texts.max_skipped:g}; it is a fraction")
        record_text.parse(texts.text, f"{field}.text")
        if texts.given is not None:
            record_text.parse(texts.given, f"{field}.given")
    _demand(
        evaluation.stride is None or 1 <= evaluation.stride <= context,
        f"evaluation.stride is {evaluation.stride}; it is from 1 to training.context ({context}), or none",
    )
    _demand(evaluation.limit is None or evaluation.limit > 0, f"evaluation.limit is {evaluation.limit}; 1 at least")
    _demand((evaluation.fewshot or 0) >= 0, "evaluation.fewshot is negative; 0 shows no examples")
    _demand(len(set(evaluation.tasks)) == len(evaluation.tasks), "evaluation.tasks has the same task twice")
    _demand(evaluation.rows_while_training >= 0, "evaluation.rows_while_training is negative; 0 scores none")


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise SbpError(message)


def to_json(experiment: Experiment) -> dict[str, Any]:
    return dataclasses.asdict(experiment)
