"""One arm: a model trained from scratch on real and, for some arms, synthetic rows (SBP, step 3).

The run of the `repetition` arm is the base model as well.
"""

from sbp_jax.accounting import charges
from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Execution, Model, Tokenizer, Training
from sbp_jax.data.budget import tokens_of_passes, training_tokens
from sbp_jax.data.mixing import plan_arm, plan_megadoc
from sbp_jax.data.rows import ROW_TARGETS, RowSource
from sbp_jax.data.screened import mapped
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training import export
from sbp_jax.training.evaluation import spread
from sbp_jax.training.loop import Run, train

WATCHED = "text/"  # begins the roles of text sets
VERSION = 2


def run(
    output: Output,
    *,
    real: Artifact,
    oracle: Artifact,
    validation: Artifact,
    tokenizer: Artifact,
    synthetic: Artifact | None = None,
    megadoc: Artifact | None = None,
    settings: Tokenizer,
    model: Model,
    training: Training,
    synthetic_share: float,
    seed: int,
    order: str = "uniform",
    epochs: float | None = None,
    charged: tuple[charges.Entry, ...] = (),
    rows_while_training: int = 0,
    execution: Execution,
    **more: Artifact,
) -> Artifact:
    """Trains for the token budget; the last rows of each stream that are not full are left out.

    Args:
      real: the packed real stream.
      synthetic, megadoc: that of synthetic documents, or of megadocs, which hold real ones too; one of them at most.
      synthetic_share: of all targets of the run.
      order: of the streams, as `mixing.Plan` has it.
      epochs: passes over the real stream that make the budget, with the synthetic share on top; None: the common one.
      charged: what another arm is charged for, whose operations are the budget instead; () for none.
      rows_while_training: of each text set that are scored at each validation.
      more: "text/<set>", the rows of each text set, of which what is told changes nothing in the model; and the
        artifacts of `charged`, by the roles of `charges.roles`.

    Raises:
      SbpError: the budget is smaller than one step, or a stream has no full row.
    """
    streams = {"real": _full_rows(real, "real", "lower training.context")}
    remedy = "raise synthesis.oversample or loosen the filters"
    for name, artifact in (("synthetic", synthetic), ("megadoc", megadoc)):
        if artifact is not None:
            streams[name] = _full_rows(artifact, name, remedy)
    tokens = training_tokens(training.tokens, oracle)
    encoder = text_tokenizer.load(tokenizer.file("tokenizer.json"), settings)
    if epochs is not None:
        tokens = tokens_of_passes(epochs, synthetic_share, real)
    elif charged:
        operations = charges.charges(charged, more, model, encoder.vocab_size).total
        tokens = charges.allowance(operations, model, encoder.vocab_size, training.context)
    steps = tokens // (training.batch_rows * training.context)
    if steps < 1:
        size = f"one step of {training.batch_rows} rows of {training.context}"
        raise SbpError(f"{tokens:,} training tokens are less than {size}; lower training.batch_rows or add documents")
    asked = (steps * training.batch_rows, training.context, synthetic_share, streams["real"])
    if megadoc is None:
        plan = plan_arm(*asked, streams.get("synthetic"), order)
    else:
        targets_R = mapped(megadoc.file(ROW_TARGETS))[: len(streams["megadoc"])]
        plan = plan_megadoc(*asked, targets_R, order)
        streams["megadoc"] = RowSource(megadoc, plan.rows.get("megadoc", 0))
    token_bytes = real.stats["bytes"] / real.stats["targets"]
    texts = {}
    if rows_while_training:
        watched = {role.removeprefix(WATCHED): rows for role, rows in more.items() if role.startswith(WATCHED)}
        texts = {name: spread(RowSource(rows), rows_while_training) for name, rows in watched.items()}
    job = Run(model, encoder.vocab_size, training, streams, plan, RowSource(validation), seed, token_bytes, texts=texts)
    finished = train(job, output.path, output.label, build_mesh(execution.mesh), execution)
    return export.save(output, job, finished, tokenizer, settings)


def _full_rows(artifact: Artifact, name: str, remedy: str) -> RowSource:
    rows = artifact.stats["full_rows"]
    if rows < 1:
        context = artifact.stats["context"]
        raise SbpError(f"the {name} stream is shorter than a row of {context}; {remedy}")
    return RowSource(artifact, rows)
