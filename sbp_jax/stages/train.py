"""One arm: a model trained from scratch on real and, for some arms, synthetic rows (SBP, step 3).

The run of the `repetition` arm is the base model as well.
"""

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Execution, Model, Tokenizer, Training
from sbp_jax.data.budget import training_tokens
from sbp_jax.data.mixing import plan_arm
from sbp_jax.data.rows import RowSource
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training import export
from sbp_jax.training.evaluation import spread
from sbp_jax.training.loop import Run, train

VERSION = 2


def run(
    output: Output,
    *,
    real: Artifact,
    oracle: Artifact,
    validation: Artifact,
    tokenizer: Artifact,
    synthetic: Artifact | None = None,
    settings: Tokenizer,
    model: Model,
    training: Training,
    synthetic_share: float,
    seed: int,
    rows_while_training: int = 0,
    execution: Execution,
    **watched: Artifact,
) -> Artifact:
    """Trains for the token budget; the last rows of each stream that are not full are left out.

    Args:
      rows_while_training: of each text set that are scored at each validation.
      watched: "text/<set>", the rows of each text set; what is told of them changes nothing in the model.

    Raises:
      SbpError: the budget is smaller than one step, or a stream has no full row.
    """
    streams = {"real": _full_rows(real, "real", "lower training.context")}
    if synthetic is not None:
        streams["synthetic"] = _full_rows(synthetic, "synthetic", "raise synthesis.oversample or loosen the filters")
    tokens = training_tokens(training.tokens, oracle)
    steps = tokens // (training.batch_rows * training.context)
    if steps < 1:
        size = f"one step of {training.batch_rows} rows of {training.context}"
        raise SbpError(f"{tokens:,} training tokens are less than {size}; lower training.batch_rows or add documents")
    rows = steps * training.batch_rows
    plan = plan_arm(rows, training.context, synthetic_share, streams["real"], streams.get("synthetic"))
    encoder = text_tokenizer.load(tokenizer.file("tokenizer.json"), settings)
    token_bytes = real.stats["bytes"] / real.stats["targets"]
    texts = {}
    if rows_while_training:
        texts = {
            role.removeprefix("text/"): spread(RowSource(rows), rows_while_training) for role, rows in watched.items()
        }
    job = Run(model, encoder.vocab_size, training, streams, plan, RowSource(validation), seed, token_bytes, texts=texts)
    finished = train(job, output.path, output.label, build_mesh(execution.mesh), execution)
    return export.save(output, job, finished, tokenizer, settings)


def _full_rows(artifact: Artifact, name: str, remedy: str) -> RowSource:
    rows = artifact.stats["full_rows"]
    if rows < 1:
        context = artifact.stats["context"]
        raise SbpError(f"the {name} stream is shorter than a row of {context}; {remedy}")
    return RowSource(artifact, rows)
