"""The synthesizer: the base model tuned on pairs, loss on d2 alone (SBP, step 2)."""

import math
from functools import partial

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Execution, Model, Tokenizer, Tuning
from sbp_jax.data.mixing import Plan
from sbp_jax.data.rows import RowSource
from sbp_jax.model import huggingface
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training import export
from sbp_jax.training.loop import Run, train

VERSION = 2


def run(
    output: Output,
    *,
    base: Artifact,
    pairs: Artifact,
    validation: Artifact,
    tokenizer: Artifact,
    settings: Tokenizer,
    model: Model,
    tuning: Tuning,
    execution: Execution,
) -> Artifact:
    """Tunes from the base model's best checkpoint, for whole steps of the asked passes over the pairs."""
    rows = RowSource(pairs)
    steps = max(1, math.ceil(tuning.epochs * len(rows) / tuning.batch_rows))
    plan = Plan({"pairs": steps * tuning.batch_rows}, {"pairs": len(rows)})
    mesh = build_mesh(execution.mesh)
    encoder = text_tokenizer.load(tokenizer.file("tokenizer.json"), settings)
    initial = partial(huggingface.load, base.folder(export.BEST), model, encoder.vocab_size, mesh)
    token_bytes = pairs.stats["token_bytes"]
    job = Run(
        *(model, encoder.vocab_size, tuning, {"pairs": rows}, plan, RowSource(validation), 0, token_bytes, initial)
    )
    finished = train(job, output.path, output.label, mesh, execution)
    return export.save(output, job, finished, tokenizer, settings)
