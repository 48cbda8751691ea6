"""`config.json` of a Hugging Face model, and the `Model` that it means.

What a file leaves out has the default of transformers' class for that kind of model. What the decoder cannot compute is
refused here: nothing is imported that would give other logits than the model has elsewhere.
"""

import json
from typing import Any

from etils import epath

from sbp_jax.config import Model, RopeScaling
from sbp_jax.errors import SbpError

CONFIG = "config.json"
KINDS = {"Qwen3ForCausalLM": "qwen3", "Qwen3Model": "qwen3", "LlamaForCausalLM": "llama", "LlamaModel": "llama"}
_QWEN3, _LLAMA = (151_936, 4096, 32, 32, 22016, 32768), (32_000, 4096, 32, 32, 11008, 2048)
_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": dict(zip(_FIELDS, _QWEN3, strict=True)) | {"num_key_value_heads": 32, "head_dim": 128},
    "llama": dict(zip(_FIELDS, _LLAMA, strict=True)) | {"num_key_value_heads": None, "head_dim": None},
}


def read(folder: epath.Path) -> dict[str, Any]:
    """The content of a folder's `config.json`.

    Raises:
      SbpError: it is missing or is no JSON object.
    """
    path = folder / CONFIG
    if not path.exists():
        raise SbpError(
            f"{folder} has no {CONFIG}; give the folder of a model as `save_pretrained` of transformers wrote it"
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise SbpError(f"{path} is not JSON ({error}); copy the model again, whole") from error
    if not isinstance(config, dict):
        raise SbpError(f"{path} is no JSON object; copy the model again, whole")
    return config


def to_model(config: dict[str, Any], path: epath.Path) -> Model:
    """The decoder that a config describes; activations are float32, whatever the weights were stored in.

    Args:
      config: the content of the file.
      path: of the file, for messages.

    Raises:
      SbpError: the model is of another kind, or has a part that this decoder lacks.
    """
    kind = _kind(config, path)
    given = DEFAULTS[kind] | config
    _refuse_what_is_missing_here(given, path)
    heads, width = _size(given, "num_attention_heads", path), _size(given, "hidden_size", path)
    head_dim = given["head_dim"] if given["head_dim"] is not None else width // heads
    kv_heads = given["num_key_value_heads"] if given["num_key_value_heads"] is not None else heads
    rope_base, rope_scaling = _rope(given, path)
    return Model(
        width=width,
        layers=_size(given, "num_hidden_layers", path),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=_size(given, "intermediate_size", path),
        qk_norm=kind == "qwen3",
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        norm_epsilon=float(given.get("rms_norm_eps", 1e-6)),
        tied_embeddings=bool(given.get("tie_word_embeddings", False)),
    )


def context(config: dict[str, Any], path: epath.Path) -> int:
    """Tokens that the model reads at most."""
    return _size(DEFAULTS[_kind(config, path)] | config, "max_position_embeddings", path)


def vocabulary(config: dict[str, Any], path: epath.Path) -> int:
    """Rows of the embedding table."""
    return _size(DEFAULTS[_kind(config, path)] | config, "vocab_size", path)


def end_of_document(config: dict[str, Any]) -> int | None:
    """Token id that ends a text; the first one where there are several."""
    token = config.get("eos_token_id")
    return token[0] if isinstance(token, list) and token else token if isinstance(token, int) else None


def from_model(
    model: Model, architecture: str, vocabulary: int, context: int, end_of_document: int, dtype: str
) -> dict[str, Any]:
    """The content of `config.json`, as transformers of versions 4 and 5 read it.

    Args:
      architecture: one of `KINDS`.
      vocabulary: rows of the embedding table.
      context: tokens that the model was trained to read.
      end_of_document: token id.
      dtype: of the weights.
    """
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": KINDS[architecture],
        "vocab_size": vocabulary,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.ffn,
        "rope_theta": model.rope_base,
        "rope_scaling": None,
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_embeddings,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": end_of_document,
        "eos_token_id": end_of_document,
        "dtype": dtype,
        "torch_dtype": dtype,  # what it was called before version 4.56
    }
    if (scaling := model.rope_scaling) is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency,
            "high_freq_factor": scaling.high_frequency,
            "original_max_position_embeddings": scaling.context,
        }
    return config


def _kind(config: dict[str, Any], path: epath.Path) -> str:
    names = config.get("architectures") or []
    if not names and config.get("model_type") in DEFAULTS:
        return config["model_type"]
    if len(names) == 1 and names[0] in KINDS:
        return KINDS[names[0]]
    found = ", ".join(map(str, names)) or config.get("model_type") or "not named"
    raise SbpError(f"{path}: the architecture is {found}; this decoder can be {', '.join(KINDS)}: take one of those")


def _refuse_what_is_missing_here(config: dict[str, Any], path: epath.Path) -> None:
    def refuse(field: str, what: str) -> None:
        raise SbpError(f"{path}: {field} is {config[field]!r}, and this decoder has no {what}; take another model")

    for field in ("attention_bias", "mlp_bias"):
        if config.get(field):
            refuse(field, "biases")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        refuse("hidden_act", "activation but silu")
    if config.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        refuse("partial_rotary_factor", "partial rotation")
    layers, kinds = config["num_hidden_layers"], config.get("layer_types")
    if kinds and set(kinds) != {"full_attention"}:
        refuse("layer_types", "attention but the full one")
    window = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    if not kinds and window and config.get("max_window_layers", 28) < layers:
        refuse("use_sliding_window", "sliding window")


def _rope(config: dict[str, Any], path: epath.Path) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_theta` and `rope_scaling` or, since version 5, from `rope_parameters`."""
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(field) or {}
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if any(isinstance(value, dict) for value in rope.values()) or kind not in ("default", "llama3"):
        raise SbpError(
            f"{path}: {field} is {rope}; this decoder has RoPE as it is and scaled as Llama 3.1 does (llama3)"
        )
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise SbpError(f"{path}: {field} rotates a part of each head, which this decoder cannot; take another model")
    if kind == "default":
        return base, None
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    try:
        return base, RopeScaling(
            factor=float(rope["factor"]),
            low_frequency=float(rope["low_freq_factor"]),
            high_frequency=float(rope["high_freq_factor"]),
            context=int(original or config["max_position_embeddings"]),
        )
    except KeyError as error:
        raise SbpError(
            f"{path}: {field} of type llama3 lacks {error}; copy the file again from where it is whole"
        ) from error


def _size(config: dict[str, Any], field: str, path: epath.Path) -> int:
    value = config[field]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SbpError(f"{path}: {field} is {value!r}; it must be a whole number above 0")
    return value
