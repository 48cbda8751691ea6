"""The engines of this host, by `execution.engine`, for a model in a Hugging Face folder."""

from collections.abc import Sequence
from typing import Any

from sbp_jax.config import Execution, Model
from sbp_jax.generation import replicas
from sbp_jax.generation.engine import Engine
from sbp_jax.generation.vllm import Vllm
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import abstract, to_compute_dtype
from sbp_jax.text.tokenizer import TextTokenizer


def start(
    folder: Any,
    decoder: Model,
    tokenizer: TextTokenizer,
    seed: int,
    context: int,
    execution: Execution,
    slots: int,
    circles: bool = True,
) -> Sequence[replicas.Generator]:
    """An engine for each copy of the model that the devices of this host hold; of vLLM one, which takes its own."""
    if execution.engine == "vllm":
        devices, python = execution.mesh.fsdp * execution.mesh.tensor, execution.vllm_python
        shape = {"context": context, "slots": slots, "devices": devices}
        return [Vllm(folder, tokenizer, seed=seed, dtype=decoder.dtype, python=python, name=str(folder), **shape)]
    vocabulary = huggingface.inspect(folder).vocabulary
    meshes = replicas.meshes(execution.mesh)
    sharing = meshes.count(meshes[0])  # copies on the same devices divide the slots, and what they hold
    engines = []
    for mesh in meshes:
        target = to_compute_dtype(decoder, abstract(decoder, vocabulary, mesh))
        engines.append(
            Engine(
                decoder,
                huggingface.load(folder, decoder, vocabulary, mesh, target),
                tokenizer,
                context=context,
                mesh=mesh,
                slots=max(1, slots // sharing),
                decode_steps=execution.decode_steps,
                seed=seed,
                cache_tokens=execution.cache_tokens and execution.cache_tokens // sharing,
                name=str(folder),
                circles=circles,
            )
        )
    return engines
