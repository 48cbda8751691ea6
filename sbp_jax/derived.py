"""Numbers that follow from an experiment: steps, epochs, synthetic tokens, parameters."""

from typing import Any

from sbp_jax.arms import Source, source, suffix, trained_arms
from sbp_jax.config import Arm
from sbp_jax.errors import SbpError
from sbp_jax.model.parameters import count
from sbp_jax.pipeline import Pipeline
from sbp_jax.text.documents import source_files

KNOWN = "corpus.tokens"
BYTES_PER_TOKEN = 4.0  # of English text; only for estimates before anything is tokenized


def derive(pipeline: Pipeline) -> dict[str, Any]:
    """The derived numbers, and under "tokens from" where the token counts they rest on come from.

    That is the corpus's known size (`corpus.tokens`) where it is given and splits are drawn, the packed rows where they
    are made already, and otherwise the size of the files.

    Raises:
      SbpError: the corpus is neither known nor there to be measured.
    """
    experiment = pipeline.experiment
    capped, oracle, origin = _unique_tokens(pipeline)
    common = experiment.training.tokens or oracle
    step_tokens = experiment.training.batch_rows * experiment.training.context
    arms = [entry.arm for entry in trained_arms(experiment)]
    of = {arm.name: arm.flops_of for arm in arms}
    budgets = {arm.name: _budget(arm, common, oracle if arm.real == "oracle" else capped) for arm in arms}
    shares: dict[Source, float] = {}
    for arm in arms:
        if (text := source(arm)) is not None:
            shares[text] = max(shares.get(text, 0.0), arm.synthetic_share)
    needed = {f"synthetic{suffix(*text)}": share * common for text, share in shares.items()}
    return {
        "parameters": count(experiment.model, experiment.tokenizer.vocab_size),
        "tokens from": origin,
        "unique real tokens": {"capped": capped, "oracle": oracle},
        "training tokens": common // step_tokens * step_tokens,
        "tokens a step": step_tokens,
        "steps": common // step_tokens,
        "synthetic tokens needed": round(sum(needed.values())),
        "synthetic tokens to generate": round(sum(needed.values()) * experiment.synthesis.oversample),
        "synthetic tokens needed of each kind": {name: round(tokens) for name, tokens in needed.items()},
        "real epochs": {
            arm.name: None
            if (tokens := budgets[arm.name]) is None
            else round(tokens * (1 - arm.synthetic_share) / (oracle if arm.real == "oracle" else capped), 2)
            for arm in arms
        },
        "training tokens of each arm": {
            name: f"for the operations of {of[name]}" if tokens is None else tokens // step_tokens * step_tokens
            for name, tokens in budgets.items()
        },
    }


def _budget(arm: Arm, common: int, unique: int) -> int | None:
    """Tokens that an arm may train on; None: known once another arm is trained."""
    if arm.flops_of is not None:
        return None
    return common if arm.epochs is None else round(arm.epochs * unique / (1 - arm.synthetic_share))


def _unique_tokens(pipeline: Pipeline) -> tuple[int, int, str]:
    """Tokens of the capped and of the oracle set, and where they are known from."""
    experiment = pipeline.experiment
    splits, corpus = experiment.splits, experiment.corpus
    training = (1 - splits.validation - splits.test) * corpus.sample
    drawn = "" if corpus.split_field is None else f", as if splits were drawn, though {corpus.split_field} decides"
    if corpus.tokens is not None and not drawn:
        return round(corpus.tokens * training * splits.capped), round(corpus.tokens * training * splits.oracle), KNOWN
    if (packed := _packed(pipeline)) is not None:
        return *packed, "the packed rows"
    if corpus.tokens is not None:
        tokens, origin = corpus.tokens * training, KNOWN
    else:
        size = 0.0
        for file in source_files(corpus.paths):
            unpacking = 3.0 if file.suffix in (".gz", ".zst", ".parquet") else 1.0
            size += file.stat().length * unpacking
        tokens, origin = size / BYTES_PER_TOKEN * training, "the size of the files, roughly"
    return round(tokens * splits.capped), round(tokens * splits.oracle), origin + drawn


def _packed(pipeline: Pipeline) -> tuple[int, int] | None:
    """Tokens of the packed capped and oracle rows; None where they are not made or the corpus is not there."""
    try:
        capped, oracle = pipeline.artifact("rows-capped"), pipeline.artifact("rows-oracle")
    except SbpError:
        return None
    return None if capped is None or oracle is None else (capped.stats["targets"], oracle.stats["targets"])


def tree(value: dict[str, Any], indent: str = "") -> list[str]:
    """Nested dictionaries as indented lines."""
    lines = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            lines += [f"{indent}{name}:", *tree(entry, indent + "  ")]
        elif isinstance(entry, list | tuple) and entry and isinstance(entry[0], dict):
            lines.append(f"{indent}{name}:")
            for item in entry:
                lines.append(f"{indent}  - " + ", ".join(f"{key}={_show(inner)}" for key, inner in item.items()))
        else:
            lines.append(f"{indent}{name}: {_show(entry)}")
    return lines


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(_show(entry) for entry in value) if isinstance(value, list | tuple) else str(value)
