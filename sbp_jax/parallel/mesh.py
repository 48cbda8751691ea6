"""The device mesh: axes data, fsdp and tensor, which all exist always."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sbp_jax import config
from sbp_jax.errors import SbpError

AXES = ("data", "fsdp", "tensor")


def build_mesh(sizes: config.MeshShape, devices: Sequence[Any] | None = None, split: bool = True) -> Mesh:
    """The mesh over all devices; an axis of size -1 takes what the others leave.

    On several TPU slices `data` runs across them, over the data-centre network, and the other axes stay inside one.
    Axis types are Auto: embedding look-ups, cache updates and sorts do not yet work under Explicit axes, so the
    compiler places what the constraints at a few named points leave open.

    Args:
      devices: those to use, such as a topology's that is only compiled for; None: all there are.
      split: whether a side of a TPU's torus may be divided between two axes, whose rings are then not rings.

    Raises:
      NotImplementedError: without `split`, sizes that are no products of the sides of the torus.
      SbpError: the sizes do not multiply to the number of devices, or `data` does not divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    if shape.count(-1) == 1:
        known = int(np.prod([size for size in shape if size != -1]))
        shape[shape.index(-1)] = len(devices) // max(known, 1)
    asked = f"data={sizes.data}, fsdp={sizes.fsdp}, tensor={sizes.tensor}"
    if int(np.prod(shape)) != len(devices) or min(shape) < 1:
        raise SbpError(
            f"a mesh of {asked} does not fit {len(devices)} devices; the sizes of execution.mesh must multiply to that"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise SbpError(
            f"a mesh of {asked} does not fit {slices} slices of {len(devices) // slices} devices;"
            f" execution.mesh.data must be a multiple of {slices}, the only axis that crosses between slices"
        )
    if slices > 1:
        inside = (shape[0] // slices, *shape[1:])
        arranged = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1), devices, allow_split_physical_axes=split
        )
    else:
        arranged = mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=split)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)


def one_host_mesh(sizes: config.MeshShape) -> Mesh:
    """The mesh over this host's devices alone: that of `sizes` on a single host, data parallel on one of several."""
    return build_mesh(sizes) if jax.process_count() == 1 else build_mesh(config.MeshShape(), jax.local_devices())
