"""One set of rules from the logical dimensions of arrays to mesh axes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Dimensions = tuple[str | None, ...]


@dataclass(frozen=True)
class ShardingRules:
    """The mesh axes that each logical dimension is cut along; dimensions not named here stay whole."""

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    ffn: tuple[str, ...] = ("tensor",)
    vocabulary: tuple[str, ...] = ("tensor",)


RULES = ShardingRules()


def spec(dimensions: Dimensions, shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Partition of an array by the names of its dimensions; one that does not divide evenly stays whole."""
    axes: list[tuple[str, ...] | None] = []
    for name, size in zip(dimensions, shape, strict=True):
        wanted = _axes(name)
        axes.append(wanted if wanted and size % math.prod(mesh.shape[axis] for axis in wanted) == 0 else None)
    return PartitionSpec(*axes)


def sharding(dimensions: Dimensions, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, spec(dimensions, shape, mesh))


def constrain(x: jax.Array, *dimensions: str | None) -> jax.Array:
    """Places an activation by its dimensions on the mesh in use; does nothing where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(dimensions, x.shape, mesh))


def axis_size(dimension: str) -> int:
    """Parts that a dimension is cut into on the mesh in use, 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in _axes(dimension))


def cut_along(dimension: str, size: int) -> tuple[str, ...] | None:
    """The mesh axes that a dimension of this size is cut along, () where no mesh is in use; None: it stays whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return _axes(dimension) if size % axis_size(dimension) == 0 else None


def in_shards(
    function: Callable[..., tuple[Any, ...]],
    dimensions: tuple[Dimensions, ...],
    results: tuple[Dimensions, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> Callable[..., tuple[Any, ...]]:
    """The function run on each device's part of its operands, for what the compiler cannot cut well by itself.

    Args:
      function: gives a tuple.
      dimensions: names of each operand's dimensions.
      results: names of each result's dimensions.
      shapes: of the whole results.
    """

    def call(*operands: jax.Array) -> tuple[Any, ...]:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*operands)
        inputs = tuple(spec(names, operand.shape, mesh) for names, operand in zip(dimensions, operands, strict=True))
        outputs = tuple(spec(names, shape, mesh) for names, shape in zip(results, shapes, strict=True))
        return jax.shard_map(function, in_specs=inputs, out_specs=outputs, check_vma=False)(*operands)

    return call


def activations(mesh: Mesh) -> Any:
    """The context in which `constrain` places arrays on `mesh`."""
    return jax.set_mesh(mesh)


def _axes(dimension: str | None) -> tuple[str, ...]:
    return getattr(RULES, dimension, ()) if dimension else ()
