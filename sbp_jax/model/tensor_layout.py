"""Which tensor of a file is which parameter, and how a part of one becomes a part of the other.

Legend: L layers, V rows of a table, D width, I inputs and O outputs of a linear layer. A matrix is [L, I, O] here,
with I or O in two dimensions where there are heads, and one [O, I] for each layer in a file. A table is [V, D] in both.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sbp_jax.model.parameters import Parameters
from sbp_jax.model.tensor_files import BLOCK, Source, Tensor, blocks

# Our name of each stacked weight, the name of one layer's weight in a file, and how many of its dimensions are inputs.
LAYER = {
    "attention_norm": ("input_layernorm", 0),
    "query": ("self_attn.q_proj", 1),
    "key": ("self_attn.k_proj", 1),
    "value": ("self_attn.v_proj", 1),
    "query_norm": ("self_attn.q_norm", 0),
    "key_norm": ("self_attn.k_norm", 0),
    "output": ("self_attn.o_proj", 2),
    "ffn_norm": ("post_attention_layernorm", 0),
    "gate": ("mlp.gate_proj", 1),
    "up": ("mlp.up_proj", 1),
    "down": ("mlp.down_proj", 1),
}
Bounds = tuple[tuple[int, int], ...]  # first index and one past the last along each dimension


def name_of(ours: str, prefix: str, layer: int | None = None) -> str:
    """The name in a file of a parameter, or of one layer's part of it.

    Args:
      prefix: "model.", or "" where a file is of a model without its head.
    """
    if layer is not None:
        return f"{prefix}layers.{layer}.{LAYER[ours][0]}.weight"
    top = {"embedding": f"{prefix}embed_tokens", "final_norm": f"{prefix}norm", "unembedding": "lm_head"}
    return f"{top[ours]}.weight"


def named(parameters: Parameters) -> Iterator[tuple[str, int | None, Any]]:
    """Each parameter by our name, a stacked one once for each layer, in the order of a file."""
    yield "embedding", None, parameters["embedding"]
    layers = parameters["layers"]
    for layer in range(layers["query"].shape[0]):
        for ours in LAYER:
            if layers.get(ours) is not None:
                yield ours, layer, layers[ours]
    yield "final_norm", None, parameters["final_norm"]
    if parameters.get("unembedding") is not None:
        yield "unembedding", None, parameters["unembedding"]


def file_shape(ours: str, shape: tuple[int, ...], vocabulary: int) -> tuple[int, ...]:
    """Shape of the tensor that holds a parameter, or one layer of it."""
    if ours == "final_norm":
        return shape
    if ours not in LAYER:
        return (vocabulary, *shape[1:])
    inputs = LAYER[ours][1]
    return (math.prod(shape[1 + inputs :]), math.prod(shape[1 : 1 + inputs])) if inputs else shape[1:]


def read_layers(tensors: Sequence[Tensor], ours: str, shape: tuple[int, ...], dtype: Any, bounds: Bounds) -> np.ndarray:
    """A part of a stacked parameter of this shape, from the tensors of its layers."""
    inputs = LAYER[ours][1]
    columns, rows = (
        _flat(bounds[1 : 1 + inputs], shape[1 : 1 + inputs]),
        _flat(bounds[1 + inputs :], shape[1 + inputs :]),
    )
    part = np.empty([last - first for first, last in bounds], dtype)
    for place, layer in enumerate(range(*bounds[0])):
        matrix_IO = part[place].reshape(columns[1] - columns[0], rows[1] - rows[0])
        for first, block_OI in blocks(tensors[layer], rows, columns):
            matrix_IO[:, first - rows[0] : first - rows[0] + len(block_OI)] = block_OI.T
    return part


def read_vector(tensor: Tensor, dtype: Any, bounds: Bounds) -> np.ndarray:
    """A part of a parameter of one dimension."""
    return np.concatenate([block[:, 0] for _, block in blocks(tensor, bounds[0], (0, 1))]).astype(dtype)


def read_table(tensor: Tensor, vocabulary: int, dtype: Any, bounds: Bounds) -> np.ndarray:
    """Some rows and columns of a table.

    Rows that the vocabulary has beyond the tensor's are the mean of the tensor's rows, so that a new token starts as an
    average one (Hewitt 2021, "Initializing New Word Embeddings"); those beyond the vocabulary are zeros.
    """
    (first, last), columns = bounds
    held = tensor.shape[0]
    part_VD = np.zeros((last - first, columns[1] - columns[0]), dtype)
    for start, block in blocks(tensor, (min(first, held), min(last, held)), columns):
        part_VD[start - first : start - first + len(block)] = block
    new = slice(max(first, held) - first, max(min(last, vocabulary) - first, 0))
    if new.start < new.stop:
        total_D = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(tensor, (0, held), columns))
        part_VD[new] = total_D / held
    return part_VD


def sources(parameters: Parameters, vocabulary: int, head: bool, dtype: np.dtype) -> Iterator[Source]:
    """The tensors of a file, in order; nothing is brought to the host before it is written.

    Args:
      head: whether the model is written with its head; else without, and with bare names.
    """
    prefix = "model." if head else ""
    for ours, layer, array in named(parameters):
        if ours == "unembedding" and not head:
            continue
        shape = file_shape(ours, array.shape, vocabulary)
        if layer is None:
            pieces: Callable[[], Iterator[np.ndarray]] = partial(_rows, array, shape[0], dtype)
        else:
            pieces = partial(_layer, array, layer, shape, dtype)
        yield Source(name_of(ours, prefix, layer), shape, dtype, pieces)


def _flat(bounds: Bounds, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bounds along some dimensions taken as one; only the first of them may be cut."""
    assert all(bound == (0, size) for bound, size in zip(bounds[1:], shape[1:], strict=True)), (bounds, shape)
    size = math.prod(shape[1:])
    return (bounds[0][0] * size, bounds[0][1] * size) if bounds else (0, 1)


def _layer(array: Any, layer: int, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    part = _host(array, layer, 1, dtype)
    yield part.reshape(shape[::-1]).T


def _rows(array: Any, count: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The first `count` rows, as many at a time as a block holds."""
    step = max(1, BLOCK // (math.prod(array.shape[1:]) * dtype.itemsize))
    for first in range(0, count, step):
        yield _host(array, first, min(step, count - first), dtype)


def _host(array: Any, first: int, count: int, dtype: np.dtype) -> np.ndarray:
    """A slice along the first dimension, whole on the host of every process."""
    if not isinstance(array, jax.Array):
        return np.asarray(array[first : first + count], dtype)
    part = _slice(array, first, count, dtype)
    return np.asarray(part) if part.is_fully_addressable else multihost_utils.process_allgather(part, tiled=True)


@partial(jax.jit, static_argnums=(2, 3))
def _slice(array: jax.Array, first: int, count: int, dtype: np.dtype) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, first, count).astype(dtype)
