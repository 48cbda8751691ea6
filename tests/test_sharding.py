"""Where every parameter of every shipped config lies, as text; and meshes, over slices too.

`python -m tests.test_sharding` writes the snapshots anew, after a change that is meant.
"""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sbp_jax.config import Experiment, MeshShape
from sbp_jax.errors import SbpError
from sbp_jax.experiments import load
from sbp_jax.model.parameters import abstract
from sbp_jax.parallel.mesh import AXES, build_mesh
from sbp_jax.parallel.sharding import RULES, in_shards, spec

ROOT = Path(__file__).parent.parent
SNAPSHOTS = Path(__file__).parent / "snapshots"
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
MESH = MeshShape(data=2, fsdp=2, tensor=2)


def describe(experiment: Experiment) -> str:
    """A line for each parameter: its name, shape, and the mesh axes of each dimension."""
    parameters = abstract(experiment.model, experiment.tokenizer.vocab_size, build_mesh(MESH))
    lines = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        axes = [
            "-" if axis is None else axis if isinstance(axis, str) else "+".join(axis) for axis in leaf.sharding.spec
        ]
        lines.append(f"{'.'.join(key.key for key in path):<24}{list(leaf.shape)!s:<28}{' '.join(axes)}".rstrip())
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_parameter_lies_where_the_snapshot_says(config):
    """Guards against a rule, or a name of a dimension, that silently makes a parameter whole on every device."""
    assert describe(load(str(config))) == (SNAPSHOTS / f"sharding-{config.stem}.txt").read_text()


def test_snapshots_are_of_shipped_configs():
    assert {path.stem for path in SNAPSHOTS.glob("*.txt")} == {f"sharding-{config.stem}" for config in CONFIGS}


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = build_mesh(MeshShape(data=1, fsdp=2, tensor=4))
    assert spec(("embed", "heads", None), (64, 8, 3), mesh) == PartitionSpec("fsdp", "tensor", None)
    assert spec(("embed", "heads", None), (63, 6, 3), mesh) == PartitionSpec(None, None, None)
    assert spec(("batch", "unheard of"), (2, 2), mesh) == PartitionSpec(RULES.batch, None)


def test_shards_are_functions_of_their_own_parts():
    x = np.arange(32.0).reshape(8, 4)
    mesh = build_mesh(MESH)
    with jax.set_mesh(mesh):
        names = (("batch", "heads"),)
        largest = in_shards(lambda part: (part * 0 + part.shape[0],), names, names, ((8, 4),))
        assert np.asarray(jax.jit(largest)(x)[0]).tolist() == np.full((8, 4), 2.0).tolist()


def test_the_mesh_has_all_axes_and_the_sizes_asked_for():
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 4, 2)):
        mesh = build_mesh(MeshShape(*sizes))
        assert mesh.axis_names == AXES and mesh.devices.shape == sizes
    assert build_mesh(MeshShape(fsdp=2, tensor=2)).devices.shape == (2, 2, 2)


def slices(count: int, each: int) -> list[SimpleNamespace]:
    """Devices of several TPU slices, as far as a mesh looks at them."""
    kind = {"platform": "cpu", "device_kind": "cpu"}  # the order inside a slice is not what is looked at
    return [
        SimpleNamespace(id=s * each + i, slice_index=s, process_index=s, **kind)
        for s in range(count)
        for i in range(each)
    ]


def test_only_data_crosses_between_slices(monkeypatch):
    """Guards against fsdp's gathers on the slow network between slices."""
    made = {}
    monkeypatch.setattr("sbp_jax.parallel.mesh.Mesh", lambda devices, *_, **__: made.update(devices=devices))
    build_mesh(MeshShape(data=4, fsdp=2, tensor=1), slices(2, 4))
    indices = np.vectorize(lambda device: device.slice_index)(made["devices"])
    assert indices[:2].tolist() == np.zeros((2, 2, 1)).tolist() and indices[2:].tolist() == np.ones((2, 2, 1)).tolist()
    with pytest.raises(
        SbpError, match="does not fit 2 slices of 4 devices; execution.mesh.data must be a multiple of 2"
    ):
        build_mesh(MeshShape(data=1, fsdp=8, tensor=1), slices(2, 4))


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for config in CONFIGS:
        (SNAPSHOTS / f"sharding-{config.stem}.txt").write_text(describe(load(str(config))))
