"""Parameters of the decoder as a plain tree of arrays, apart from the module that uses them."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sbp_jax.config import Model
from sbp_jax.model.decoder import Decoder
from sbp_jax.parallel.sharding import sharding

Parameters = dict[str, Any]  # nested dictionaries of arrays, named as the module's attributes


def bind(config: Model, vocabulary: int, parameters: Parameters) -> Decoder:
    """The decoder with these parameters; free of cost inside a traced function."""
    graph, state = nnx.split(_abstract_module(config, vocabulary))
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(graph, state)


def abstract(config: Model, vocabulary: int, mesh: Mesh) -> Parameters:
    """Shape, dtype and sharding of every parameter."""

    def describe(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        value = variable.get_value()
        placed = sharding(variable.get_metadata("dimensions"), value.shape, mesh)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=placed)

    state = nnx.state(_abstract_module(config, vocabulary))
    described = jax.tree.map(describe, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return nnx.to_pure_dict(described)


def initialize(config: Model, vocabulary: int, seed: int, mesh: Mesh) -> Parameters:
    """Random parameters, each created where it belongs on the mesh; the values do not depend on the mesh."""

    def create() -> Parameters:
        return nnx.to_pure_dict(nnx.state(Decoder(config, vocabulary, nnx.Rngs(seed))))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(config, vocabulary, mesh))
    return jax.jit(create, out_shardings=shardings)()


def place(parameters: Parameters, target: Parameters) -> Parameters:
    """Puts arrays where `target`, from `abstract`, says; those of the devices stay on them."""

    def put(value: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        cast = value.astype(leaf.dtype) if isinstance(value, jax.Array) else np.asarray(value, leaf.dtype)
        return jax.device_put(cast, leaf.sharding)

    return jax.tree.map(put, parameters, target)


def to_compute_dtype(config: Model, parameters: Parameters) -> Parameters:
    """Matrices in the dtype they are multiplied in; norms stay float32. Takes abstract arrays too."""

    def cast(path: Any, leaf: Any) -> Any:
        if path[-1].key.endswith("norm"):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, np.dtype(config.dtype), sharding=leaf.sharding)
        return leaf.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(cast, parameters)


def count(config: Model, vocabulary: int) -> int:
    """Number of parameters, nothing of them made."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(_abstract_module(config, vocabulary))))


def _abstract_module(config: Model, vocabulary: int) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(config, vocabulary, nnx.Rngs(0)))
