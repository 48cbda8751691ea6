"""Finished models as safetensors in the layout of Hugging Face's Qwen3, read back by the stages that use them."""

from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from sbp_jax.config import Model
from sbp_jax.errors import SbpError
from sbp_jax.model.parameters import Parameters

WEIGHTS, CONFIG = "model.safetensors", "config.json"

# Our name of each stacked weight, the name of one layer's weight there, and how a layer's array becomes that matrix.
_LAYER = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_INPUT_DIMENSIONS = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}


def to_tensors(parameters: Parameters) -> dict[str, np.ndarray]:
    """The tensors of `model.safetensors`: linear layers as [out, in] matrices, one per layer."""
    tensors = {
        "model.embed_tokens.weight": _host(parameters["embedding"]),
        "model.norm.weight": _host(parameters["final_norm"]),
    }
    if parameters.get("unembedding") is not None:
        tensors["lm_head.weight"] = _host(parameters["unembedding"])
    for ours, theirs in _LAYER.items():
        for layer, array in enumerate(_host(parameters["layers"][ours])):
            if ours in _INPUT_DIMENSIONS:
                inputs = int(np.prod(array.shape[: _INPUT_DIMENSIONS[ours]]))
                array = array.reshape(inputs, -1).T
            tensors[f"model.layers.{layer}.{theirs}.weight"] = np.ascontiguousarray(array)
    return tensors


def to_config(config: Model, vocabulary: int, context: int, end_of_document: int) -> dict[str, Any]:
    """The content of `config.json`; `vocabulary` counts the rows of the embedding table."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": end_of_document,
        "eos_token_id": end_of_document,
        "torch_dtype": "float32",
    }


def read(weights: epath.Path, config: Model) -> Parameters:
    """Parameters from `model.safetensors`, as arrays of the host.

    Raises:
      SbpError: the tensors are not those of `config`, by name and shape.
    """
    tensors = safetensors.numpy.load(weights.read_bytes())
    unused = set(tensors)
    width, head = config.width, config.head_dim
    shapes = {
        "query": (width, config.heads, head),
        "key": (width, config.kv_heads, head),
        "value": (width, config.kv_heads, head),
        "output": (config.heads, head, width),
        "gate": (width, config.ffn),
        "up": (width, config.ffn),
        "down": (config.ffn, width),
    }

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise SbpError(f"{weights} has no tensor {name}; the model in the config is not the one in the file")
        if tensors[name].shape != shape:
            raise SbpError(
                f"{weights}: {name} has shape {list(tensors[name].shape)} where the config's model wants {list(shape)};"
                " set the fields of `model` to those of the checkpoint"
            )
        unused.discard(name)
        return tensors[name]

    def layer(ours: str, index: int) -> np.ndarray:
        name = f"model.layers.{index}.{_LAYER[ours]}.weight"
        if ours not in shapes:
            return take(name, (head,) if ours in ("query_norm", "key_norm") else (width,))
        shape, inputs = shapes[ours], int(np.prod(shapes[ours][: _INPUT_DIMENSIONS[ours]]))
        return take(name, (int(np.prod(shape)) // inputs, inputs)).T.reshape(shape)

    rows = tensors["model.embed_tokens.weight"].shape[0] if "model.embed_tokens.weight" in tensors else 0
    parameters: Parameters = {
        "embedding": take("model.embed_tokens.weight", (rows, width)),
        "final_norm": take("model.norm.weight", (width,)),
        "layers": {ours: np.stack([layer(ours, index) for index in range(config.layers)]) for ours in _LAYER},
    }
    if not config.tied_embeddings:
        parameters["unembedding"] = take("lm_head.weight", (rows, width))
    if unused:
        raise SbpError(f"{weights} has {len(unused)} tensors that the config's model does not, such as {min(unused)}")
    return parameters


def to_bytes(parameters: Parameters) -> bytes:
    """The content of `model.safetensors`."""
    return safetensors.numpy.save(to_tensors(parameters), metadata={"format": "pt"})


def _host(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)
