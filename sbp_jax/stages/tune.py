"""The synthesizer: the base model tuned on pairs, loss on d2 alone (SBP, step 2)."""

import math
from functools import partial

from etils import epath

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Execution, Model, Tokenizer, Tuning
from sbp_jax.data.mixing import Plan
from sbp_jax.data.rows import RowSource
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training import export
from sbp_jax.training.loop import Run, train

VERSION = 2


def run(
    output: Output,
    *,
    base: Artifact | None = None,
    pairs: Artifact,
    validation: Artifact,
    tokenizer: Artifact,
    settings: Tokenizer,
    model: Model,
    tuning: Tuning,
    execution: Execution,
) -> Artifact:
    """Tunes for whole steps of the asked passes over the pairs.

    Args:
      base: the repetition arm, whose best checkpoint is the start; None: the user's own model, `tuning.base`.
    """
    rows = RowSource(pairs)
    steps = max(1, math.ceil(tuning.epochs * len(rows) / tuning.batch_rows))
    plan = Plan({"pairs": steps * tuning.batch_rows}, {"pairs": len(rows)})
    mesh = build_mesh(execution.mesh)
    encoder = text_tokenizer.load(tokenizer.file("tokenizer.json"), settings)
    folder = base.folder(export.BEST) if base else epath.Path(str(tuning.base)).expanduser()
    vocabulary = max(encoder.vocab_size, huggingface.inspect(folder).vocabulary)  # a table may have rows to spare
    initial = partial(huggingface.load, folder, model, vocabulary, mesh)
    token_bytes = pairs.stats["token_bytes"]
    job = Run(*(model, vocabulary, tuning, {"pairs": rows}, plan, RowSource(validation), 0, token_bytes, initial))
    finished = train(job, output.path, output.label, mesh, execution)
    return export.save(output, job, finished, tokenizer, settings)


def base_files(tuning: Tuning, model: Model, settings: Tokenizer) -> list[epath.Path]:
    """The files of the user's own base model, which are looked at before anything is made.

    Raises:
      SbpError: it is no model that can be read, or model, tokenizer or context of the config are not its.
    """
    assert tuning.base is not None and settings.path is not None
    folder, own = epath.Path(tuning.base).expanduser(), epath.Path(settings.path).expanduser()
    checkpoint = huggingface.inspect(folder)
    huggingface.demand_model(checkpoint, model, tuning.base)
    if tuning.context > checkpoint.context:
        raise SbpError(f"tuning.context is {tuning.context}; the model in {folder} reads {checkpoint.context} tokens")
    theirs = folder / huggingface.TOKENIZER
    if not theirs.exists():
        raise SbpError(f"{theirs} is missing; save the model's tokenizer there with `save_pretrained` of transformers")
    tokenizer = text_tokenizer.read(own)
    if own.read_bytes() != theirs.read_bytes():
        raise SbpError(f"tokenizer.path is {own}, which is not the tokenizer of tuning.base; set it to {theirs}")
    if tokenizer.token_to_id(settings.end_of_document) is None:
        end = checkpoint.end_of_document
        known = None if end is None else tokenizer.id_to_token(end)
        hint = f"set tokenizer.end_of_document={known}" if known else "name one in tokenizer.end_of_document"
        raise SbpError(f"{own} has no token {settings.end_of_document}, which would be new to the model; {hint}")
    return huggingface.files(folder)
