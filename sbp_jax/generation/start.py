"""The engines of this host, by `execution.engine`, for a model in a Hugging Face folder."""

from typing import Any

from sbp_jax.config import Execution, Model
from sbp_jax.generation import replicas
from sbp_jax.generation.engine import Engine
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import abstract, to_compute_dtype
from sbp_jax.text.tokenizer import TextTokenizer


def start(
    folder: Any, decoder: Model, tokenizer: TextTokenizer, seed: int, context: int, execution: Execution, slots: int
) -> list[Engine]:
    """An engine for each copy of the model that the devices of this host hold."""
    vocabulary = huggingface.inspect(folder).vocabulary
    engines = []
    for mesh in replicas.meshes(execution.mesh):
        target = to_compute_dtype(decoder, abstract(decoder, vocabulary, mesh))
        engines.append(
            Engine(
                decoder,
                huggingface.load(folder, decoder, vocabulary, mesh, target),
                tokenizer,
                context=context,
                mesh=mesh,
                slots=slots,
                decode_steps=execution.decode_steps,
                seed=seed,
                cache_tokens=execution.cache_tokens,
                name=str(folder),
            )
        )
    return engines
