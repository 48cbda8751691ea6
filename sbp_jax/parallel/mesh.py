"""The device mesh: axes data, fsdp and tensor, which all exist always."""

import jax
import numpy as np
from jax.sharding import AxisType

from sbp_jax import config
from sbp_jax.errors import SbpError

AXES = ("data", "fsdp", "tensor")


def build_mesh(sizes: config.MeshShape) -> jax.sharding.Mesh:
    """The mesh over all devices; an axis of size -1 takes what the others leave.

    Axis types are Auto: embedding look-ups, cache updates and sorts do not yet work under Explicit axes, so the
    compiler places what the constraints at a few named points leave open.

    Raises:
      SbpError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices()
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    if shape.count(-1) == 1:
        known = int(np.prod([size for size in shape if size != -1]))
        shape[shape.index(-1)] = len(devices) // max(known, 1)
    if int(np.prod(shape)) != len(devices) or min(shape) < 1:
        asked = f"data={sizes.data}, fsdp={sizes.fsdp}, tensor={sizes.tensor}"
        raise SbpError(
            f"a mesh of {asked} does not fit {len(devices)} devices; the sizes of execution.mesh must multiply to that"
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3)
