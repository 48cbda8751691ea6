"""Models in folders as Hugging Face's libraries write and read them: Qwen3, Qwen3-Embedding and Llama.

A checkpoint goes straight from its files to where its parameters live on the mesh, and back, a piece at a time: the
host never holds a second copy. A table in a file has the rows of the vocabulary alone; those that fill it up to a
multiple of 128 on the mesh are zeros.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from sbp_jax.config import Model
from sbp_jax.errors import SbpError
from sbp_jax.model import checkpoint_config, tensor_files
from sbp_jax.model.checkpoint_config import CONFIG
from sbp_jax.model.decoder import Decoder
from sbp_jax.model.parameters import Parameters, abstract
from sbp_jax.model.tensor_files import DTYPES, Tensor, blocks
from sbp_jax.model.tensor_layout import (
    Bounds,
    file_shape,
    name_of,
    named,
    read_layers,
    read_table,
    read_vector,
    sources,
)
from sbp_jax.parallel import hosts

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "qwen3-embedding": "Qwen3Model"}
LARGEST_FILE = 2 * 10**9
_IGNORED = "rotary_emb.inv_freq"  # old Llama files keep what follows from the config


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes:
      model: the decoder; with float32 activations.
      vocabulary: rows of the embedding table.
      context: tokens that the model reads at most.
      end_of_document: id of the token that ends a text, where the config names one.
      prefix: of most tensors' names: "model.", or "" where the file is of a model without its head.
    """

    model: Model
    vocabulary: int
    context: int
    end_of_document: int | None
    prefix: str


def files(folder: epath.Path) -> list[epath.Path]:
    """The files that decide what a checkpoint is: config, weights and, where there is one, the tokenizer.

    Raises:
      SbpError: the folder holds no checkpoint, or not all of it.
    """
    found = [folder / CONFIG, *tensor_files.files(folder), folder / TOKENIZER]
    return [path for path in found if path.exists() or path.name == CONFIG]


def inspect(folder: epath.Path) -> Checkpoint:
    """What a folder holds, with the names and shapes of all its tensors verified; no weights are read.

    Raises:
      SbpError: a file is missing or damaged, or the model is one that the decoder cannot be.
    """
    return _open(folder)[0]


def load(
    folder: epath.Path, config: Model, vocabulary: int, mesh: Mesh, target: Parameters | None = None
) -> Parameters:
    """Parameters of a checkpoint, each read from its files to where it belongs on the mesh.

    Each process reads what its own devices hold. On the host there is one shard of one parameter at a time. Rows
    that the vocabulary has beyond the file's become the mean of the file's rows (Hewitt 2021, "Initializing New
    Word Embeddings"), so that a new token starts as an average one.

    Args:
      config: the decoder; its `dtype` is of no account.
      vocabulary: entries of the tokenizer, at least the rows of the file.
      target: shape, dtype and sharding of each parameter; None: as `abstract` says, in float32.

    Raises:
      SbpError: the checkpoint is damaged, or not of this model or vocabulary.
    """
    checkpoint, tensors = _open(folder)
    demand_model(checkpoint, config, str(folder))
    if checkpoint.vocabulary > vocabulary:
        rows = f"{checkpoint.vocabulary} rows of embeddings for a vocabulary of {vocabulary}"
        raise SbpError(f"{folder} has {rows}; use the tokenizer that the model was trained with")
    target = abstract(config, vocabulary, mesh) if target is None else target
    leaves, tree = jax.tree_util.tree_flatten_with_path(target)
    arrays: list[Any] = [None] * len(leaves)
    # The largest first: what a device takes over while the host still holds it then never adds to the whole model.
    for place in sorted(range(len(leaves)), key=lambda place: -math.prod(leaves[place][1].shape)):
        (*above, key), leaf = leaves[place]
        ours = key.key
        read: Callable[[Bounds], np.ndarray]
        if above:
            layers = [tensors[name_of(ours, checkpoint.prefix, layer)] for layer in range(config.layers)]
            read = partial(read_layers, layers, ours, leaf.shape, leaf.dtype)
        elif ours == "final_norm":
            read = partial(read_vector, tensors[name_of(ours, checkpoint.prefix)], leaf.dtype)
        else:
            read = partial(read_table, tensors[name_of(ours, checkpoint.prefix)], vocabulary, leaf.dtype)
        arrays[place] = _place(leaf, read)
    return jax.tree.unflatten(tree, arrays)


def demand_model(checkpoint: Checkpoint, config: Model, name: str) -> None:
    """Raises `SbpError` where a checkpoint is of another model than the config's, naming the fields that differ."""
    pairs = [
        (field.name, getattr(checkpoint.model, field.name), getattr(config, field.name)) for field in fields(Model)
    ]
    differing = [
        f"{field}={theirs} (not {ours})" for field, theirs, ours in pairs if field != "dtype" and theirs != ours
    ]
    if differing:
        raise SbpError(f"the model in {name} is not the config's; set these fields of `model`: {', '.join(differing)}")


def save(
    folder: epath.Path,
    parameters: Parameters,
    config: Model,
    vocabulary: int,
    context: int,
    end_of_document: int,
    *,
    dtype: str = "float32",
    layout: str | None = None,
    largest_file: int = LARGEST_FILE,
) -> list[str]:
    """Writes a model as a folder that transformers loads; the config comes last.

    Every process takes part, because a parameter may lie on the devices of all; process 0 writes.

    Args:
      parameters: arrays of the host, or sharded ones.
      vocabulary: rows to write of each table.
      context: tokens that the model was trained to read.
      end_of_document: token id.
      dtype: of the file, float32 or bfloat16.
      layout: qwen3, qwen3-embedding (without the head) or llama; None: what the model is.
      largest_file: bytes past which the weights go into several files.

    Returns:
      The names of the files, in order.

    Raises:
      SbpError: the model does not fit the layout, or there is no such dtype.
    """
    layout = layout or ("qwen3" if config.qk_norm else "llama")
    if layout not in ARCHITECTURES:
        raise SbpError(f"there is no layout {layout}; there are {', '.join(ARCHITECTURES)}")
    if config.qk_norm == (layout == "llama"):
        norms = "normalises" if config.qk_norm else "does not normalise"
        fitting = "qwen3 or qwen3-embedding" if config.qk_norm else "llama"
        raise SbpError(f"the model {norms} queries and keys, which layout {layout} cannot say; use {fitting}")
    if dtype not in ("float32", "bfloat16"):
        raise SbpError(f"weights cannot be written as {dtype}; use float32 or bfloat16")
    written = list(sources(parameters, vocabulary, layout != "qwen3-embedding", np.dtype(dtype)))
    shards = tensor_files.plan(written, largest_file)
    config_text = checkpoint_config.from_model(
        config, ARCHITECTURES[layout], vocabulary, context, end_of_document, dtype
    )
    texts = {tensor_files.INDEX: tensor_files.index(shards)} if len(shards) > 1 else {}
    texts[CONFIG] = config_text
    writes = hosts.is_first()
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    for name, shard in shards.items():
        with (folder / name).open("wb") if writes else nullcontext() as stream:
            tensor_files.write(stream, shard)
    for name, text in texts.items():
        if writes:
            (folder / name).write_text(json.dumps(text, indent=1))
    return [*shards, *texts]


def save_tokenizer(folder: epath.Path, tokenizer: epath.Path, end_of_document: str, context: int) -> list[str]:
    """Puts a tokenizer beside a model, so that `AutoTokenizer` of transformers loads it; the files' names."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # else transformers builds the one usual for the architecture
        "bos_token": end_of_document,
        "eos_token": end_of_document,
        "pad_token": end_of_document,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / TOKENIZER).write_bytes(tokenizer.read_bytes())
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=1))
    return [TOKENIZER, TOKENIZER_CONFIG]


def _open(folder: epath.Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """A checkpoint and its tensors by name, each with the shape that the config gives it."""
    path = folder / CONFIG
    config = checkpoint_config.read(folder)
    model, context = checkpoint_config.to_model(config, path), checkpoint_config.context(config, path)
    tensors = {name: tensor for name, tensor in tensor_files.tensors(folder).items() if not name.endswith(_IGNORED)}
    prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
    vocabulary = checkpoint_config.vocabulary(config, path)
    table, head = tensors.get(name_of("embedding", prefix)), tensors.get(name_of("unembedding", prefix))
    if head is None and not prefix:
        model = replace(model, tied_embeddings=True)  # a model without its head has but one table
    elif head is not None and table is not None and model.tied_embeddings:
        if _equal(table, head):
            del tensors[name_of("unembedding", prefix)]
        else:  # as transformers takes it since version 5
            model = replace(model, tied_embeddings=False)
    remedy = "copy the model again, whole, or take another"
    if config.get("quantization_config"):  # what was dequantised may say so too, and is welcome
        remedy = "its weights are quantised: dequantise it with transformers, and save it again"
    _verify(model, vocabulary, prefix, tensors, folder, remedy)
    return Checkpoint(model, vocabulary, context, checkpoint_config.end_of_document(config), prefix), tensors


def _verify(
    model: Model, vocabulary: int, prefix: str, tensors: Mapping[str, Tensor], folder: epath.Path, remedy: str
) -> None:
    parameters = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(Decoder(model, vocabulary, nnx.Rngs(0)))))
    leaves = list(named(parameters))
    wanted = {name_of(ours, prefix, layer): file_shape(ours, leaf.shape, vocabulary) for ours, layer, leaf in leaves}
    if missing := [name for name in wanted if name not in tensors]:
        raise SbpError(f"{folder} lacks {len(missing)} tensors that {CONFIG} calls for, such as {missing[0]}; {remedy}")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise SbpError(
            f"{folder} has {len(unknown)} tensors that this decoder has no place for, such as {unknown[0]}; {remedy}"
        )
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise SbpError(f"{tensor.file}: {name} is of dtype {tensor.dtype}, not {', '.join(DTYPES)}; {remedy}")
        if tensor.shape != shape:
            sizes = f"{list(tensor.shape)}, and {CONFIG} makes it {list(shape)}"
            raise SbpError(f"{tensor.file}: the shape of {name} is {sizes}; {remedy}")


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tables hold the same numbers."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    parts = [blocks(tensor, (0, one.shape[0]), (0, one.shape[-1])) for tensor in (one, other)]
    return all(np.array_equal(block, block_other) for (_, block), (_, block_other) in zip(*parts, strict=True))


def _place(leaf: Any, read: Callable[[Bounds], np.ndarray]) -> jax.Array:
    """An array whose parts are read one after another; a part that several devices hold is read once."""
    holders: dict[Bounds, list[jax.Device]] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    parts = []
    for bounds, devices in holders.items():
        part = read(bounds)
        parts += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)
