"""One set of rules from the logical dimensions of arrays to mesh axes."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "vocabulary": ("tensor",),
}


def spec(dimensions: tuple[str | None, ...], shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Partition of an array by the names of its dimensions; one that does not divide evenly stays whole."""
    axes: list[tuple[str, ...] | None] = []
    for name, size in zip(dimensions, shape, strict=True):
        wanted = RULES.get(name or "", ())
        parts = 1
        for axis in wanted:
            parts *= mesh.shape[axis]
        axes.append(wanted if wanted and size % parts == 0 else None)
    return PartitionSpec(*axes)


def sharding(dimensions: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, spec(dimensions, shape, mesh))


def constrain(x: jax.Array, *dimensions: str | None) -> jax.Array:
    """Places an activation by its dimensions on the mesh in use; does nothing where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(dimensions, x.shape, mesh))


def activations(mesh: Mesh) -> Any:
    """The context in which `constrain` places arrays on `mesh`."""
    return jax.set_mesh(mesh)
