"""Numbers that follow from an experiment: steps, epochs, synthetic tokens, parameters."""

from typing import Any

from sbp_jax.model.parameters import count
from sbp_jax.pipeline import Pipeline
from sbp_jax.text.documents import source_files

BYTES_PER_TOKEN = 4.0  # of English text; only for estimates before anything is tokenized


def derive(pipeline: Pipeline) -> dict[str, Any]:
    """The derived numbers, and under "tokens from" where the token counts they rest on come from.

    That is the corpus's known size (`corpus.tokens`) where it is given, the packed rows where they are made already,
    and otherwise the size of the files.

    Raises:
      SbpError: the corpus is neither known nor there to be measured.
    """
    experiment = pipeline.experiment
    capped, oracle, source = _unique_tokens(pipeline)
    budget = experiment.training.tokens or oracle
    step_tokens = experiment.training.batch_rows * experiment.training.context
    steps = budget // step_tokens
    share = max(arm.synthetic_share for arm in experiment.arms)
    return {
        "parameters": count(experiment.model, experiment.tokenizer.vocab_size),
        "tokens from": source,
        "unique real tokens": {"capped": capped, "oracle": oracle},
        "training tokens": steps * step_tokens,
        "tokens a step": step_tokens,
        "steps": steps,
        "synthetic tokens needed": round(share * budget),
        "synthetic tokens to generate": round(share * budget * experiment.synthesis.oversample),
        "real epochs": {
            arm.name: round(budget * (1 - arm.synthetic_share) / (oracle if arm.real == "oracle" else capped), 2)
            for arm in experiment.arms
        },
    }


def _unique_tokens(pipeline: Pipeline) -> tuple[int, int, str]:
    """Tokens of the capped and of the oracle set, and where they are known from."""
    experiment = pipeline.experiment
    splits, corpus = experiment.splits, experiment.corpus
    training = (1 - splits.validation - splits.test) * corpus.sample
    if corpus.tokens is not None:
        tokens, source = corpus.tokens * training, "corpus.tokens"
        return round(tokens * splits.capped), round(tokens * splits.oracle), source
    capped, oracle = pipeline.artifact("rows-capped"), pipeline.artifact("rows-oracle")
    if capped is not None and oracle is not None:
        return capped.stats["targets"], oracle.stats["targets"], "the packed rows"
    size = 0.0
    for file in source_files(corpus.paths):
        unpacking = 3.0 if file.suffix in (".gz", ".zst", ".parquet") else 1.0
        size += file.stat().length * unpacking
    tokens = size / BYTES_PER_TOKEN * training
    return round(tokens * splits.capped), round(tokens * splits.oracle), "the size of the files, roughly"
