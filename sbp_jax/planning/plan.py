"""A plan for training on a TPU slice: what fits, what it holds and sends, and how fast it would have to be."""

import math
from dataclasses import replace

from etils import epath

from sbp_jax.config import Experiment, MeshShape
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import AXES, build_mesh
from sbp_jax.planning import report
from sbp_jax.planning.compile import Compiled, compile_step
from sbp_jax.planning.search import Layout, Problem, least_parts, search
from sbp_jax.planning.topology import Topology, get_topology
from sbp_jax.text import tokenizer
from sbp_jax.training.step import Setup

SOME_STEPS = 1000  # of a schedule whose length is not known; the program is the same


def plan(
    experiment: Experiment,
    topology: str,
    slices: int = 1,
    stage: str = "train",
    mesh: str | None = None,
    remat: str | None = None,
    accumulate: int | None = None,
    days: float | None = None,
) -> report.Plan:
    """Compiles the step of a stage for a topology, in the layout asked for or in the fastest found that fits.

    What `execution` of the experiment says of mesh, remat and accumulation, other than its defaults, is asked for too.

    Args:
      topology: such as "v5p:4x4x8", of each of `slices` slices.
      stage: "train" or "tune".
      mesh: such as "data=2,fsdp=8"; None: searched for.
      days: that the run may take.

    Raises:
      SbpError: the topology or the mesh makes no sense, or libtpu is missing.
    """
    target = get_topology(topology, slices)
    optimization = experiment.training if stage == "train" else experiment.tuning
    asked, usual = experiment.execution, type(experiment.execution)()
    shape = parse_mesh(mesh) if mesh else asked.mesh if asked.mesh != usual.mesh else None
    vocabulary = experiment.tokenizer.vocab_size
    if experiment.tokenizer.path is not None:
        vocabulary = tokenizer.load(epath.Path(experiment.tokenizer.path).expanduser(), experiment.tokenizer).vocab_size
    problem = Problem(
        experiment.model,
        vocabulary,
        optimization,
        target,
        _built(shape, target) if shape else None,
        remat or (asked.remat if asked.remat != usual.remat else None),
        accumulate or (asked.accumulate if asked.accumulate != usual.accumulate else None),
    )
    _check_rows(problem, stage)
    steps = _steps(experiment, stage)
    setup = Setup(
        experiment.model,
        vocabulary,
        optimization,
        steps or SOME_STEPS,
        2 if stage == "train" else 1,  # streams: real and synthetic, or pairs
        build_mesh(problem.mesh or MeshShape(), target.devices),
        asked,
    )

    def compiled_for(layout: Layout) -> Compiled:
        devices = build_mesh(layout.mesh, target.devices)
        return compile_step(replace(setup, mesh=devices, execution=layout.execution(asked)))

    chosen, tried = search(problem, compiled_for)
    return report.Plan(experiment.name, stage, problem, steps, days, chosen, tuple(tried))


def parse_mesh(text: str) -> MeshShape:
    """The mesh of "data=2,fsdp=8,tensor=1"; axes left out are 1, but `data`, which takes what the others leave.

    Raises:
      SbpError: the text is no such list.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or not size.removeprefix("-").isdigit():
            raise SbpError(f"--mesh {text}: expected sizes of {', '.join(AXES)}, such as --mesh data=2,fsdp=64")
        sizes[name] = int(size)
    return MeshShape(**sizes)


def _built(shape: MeshShape, topology: Topology) -> MeshShape:
    """The mesh with `data` filled in."""
    return MeshShape(**build_mesh(shape, topology.devices).shape)


def _check_rows(problem: Problem, stage: str) -> None:
    """Refuses batches that do not divide over the devices; without a mesh to go by, the devices of the best case."""
    rows, pieces = problem.optimization.batch_rows, problem.accumulate or 1
    mesh = problem.mesh
    parts = pieces * (mesh.data * mesh.fsdp if mesh else least_parts(problem))
    if rows % parts:
        field = "training" if stage == "train" else "tuning"
        raise SbpError(
            f"{field}.batch_rows is {rows}, which does not divide into {parts} parts (data x fsdp x accumulate);"
            f" choose another --mesh or topology, or --set {field}.batch_rows={math.ceil(rows / parts) * parts}"
        )


def _steps(experiment: Experiment, stage: str) -> int | None:
    """Steps of the whole run; None: they follow from data that is not there yet."""
    training = experiment.training
    if stage == "tune" or training.tokens is None:
        return None
    return training.tokens // (training.batch_rows * training.context)
