"""Ways to lay a training step out over chips, in the order of their estimated speed and pruned by estimated memory.

The estimates only decide what is compiled, and in which order; what is reported comes from the compiler.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from sbp_jax.config import Execution, MeshShape, Model, Optimization
from sbp_jax.model.parameters import count
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.planning.compile import Compiled
from sbp_jax.planning.topology import Topology
from sbp_jax.training.flops import flops_per_token, matmul_parameters

TENSOR = (1, 2, 4, 8)
REMAT = ("none", "dots", "full")  # from what computes least again
MOST_COMPILED = 6
EQUAL = 0.01  # of the least time: layouts nearer to each other than that count as equally fast
FULL = 0.95  # of the memory is what a layout may take: scoring and the runtime need a little
STATE_BYTES, GRADIENT_BYTES = 12, 6  # of a parameter: weights and two moments in float32; gradients, partly twice


@dataclass(frozen=True)
class Layout:
    """One way to lay the step out, with its estimates: seconds of a step, bytes on a device."""

    mesh: MeshShape
    remat: str
    accumulate: int
    seconds: float
    bytes: float

    def execution(self, base: Execution) -> Execution:
        return replace(base, mesh=self.mesh, remat=self.remat, accumulate=self.accumulate)


@dataclass(frozen=True)
class Problem:
    """What is to be laid out; None leaves a choice to the search."""

    model: Model
    vocabulary: int
    optimization: Optimization
    topology: Topology
    mesh: MeshShape | None = None
    remat: str | None = None
    accumulate: int | None = None

    @cached_property
    def parameters(self) -> int:
        return count(self.model, self.vocabulary)


def layouts(problem: Problem) -> list[Layout]:
    """All layouts that divide evenly, the fastest by estimate first.

    Of equally fast ones, those that compute less again come first, then the smallest.
    """
    found = []
    for mesh in [problem.mesh] if problem.mesh else _meshes(problem):
        parts = mesh.data * mesh.fsdp
        rows = problem.optimization.batch_rows
        if rows % parts:
            continue
        rows_of_device = rows // parts
        pieces = [2**power for power in range(rows_of_device.bit_length()) if rows_of_device % 2**power == 0]
        for accumulate in [problem.accumulate] if problem.accumulate else pieces:
            if rows_of_device % accumulate:
                continue
            for remat in [problem.remat] if problem.remat else REMAT:
                seconds, size = estimate(problem, mesh, remat, accumulate)
                found.append(Layout(mesh, remat, accumulate, seconds, size))
    best = min((layout.seconds for layout in found), default=1.0)

    def rank(layout: Layout) -> tuple[int, int, float]:
        return round(layout.seconds / best / EQUAL), REMAT.index(layout.remat), layout.bytes

    return sorted(found, key=rank)


def least_parts(problem: Problem) -> int:
    """The fewest parts that a mesh over the topology cuts a batch into."""
    return min(mesh.data * mesh.fsdp for mesh in _meshes(problem))


def search(
    problem: Problem, compiled_for: Callable[[Layout], Compiled]
) -> tuple[tuple[Layout, Compiled] | None, list[tuple[Layout, Compiled]]]:
    """Compiles layouts, the fastest by estimate first, until one fits with a little to spare.

    Returns:
      The layout that fits with what the compiler says, a full one if none has room to spare, or None; and all that were
      compiled, in order.
    """
    tried: list[tuple[Layout, Compiled]] = []
    possible = layouts(problem)
    small = [layout for layout in possible if layout.bytes <= FULL * problem.topology.memory]
    possible = small or sorted(possible, key=lambda layout: layout.bytes)[:1]  # that nothing fits, the compiler says
    while possible and len(tried) < MOST_COMPILED:
        layout = possible.pop(0)
        compiled = compiled_for(layout)
        tried.append((layout, compiled))
        if compiled.memory.needed <= FULL * problem.topology.memory:
            break
        possible = [other for other in possible if other.bytes < 0.9 * layout.bytes]
    fitting = [attempt for attempt in reversed(tried) if fits(attempt[1], problem.topology)]
    return (fitting[0] if fitting else None), tried


def fits(compiled: Compiled, topology: Topology) -> bool:
    peak = compiled.memory.peak
    return peak is not None and peak <= topology.memory


def estimate(problem: Problem, mesh: MeshShape, remat: str, accumulate: int) -> tuple[float, float]:
    """Seconds of a step, were the devices perfect, and bytes on one."""
    model, topology, context = problem.model, problem.topology, problem.optimization.context
    slice_size = len(topology.devices) // topology.slices
    tokens = problem.optimization.batch_rows * context / (mesh.data * mesh.fsdp)  # of a device, in a step
    parameters = problem.parameters

    flops = flops_per_token(model, problem.vocabulary, context)
    again = {"none": 0.0, "dots": 0.04, "full": 1 / 3}[remat]
    saved, working = _activation_bytes(model, remat, mesh.tensor)
    # What the backward pass needs is written and read, and little of that goes on beside the products.
    local = (1 + again) * flops * tokens / mesh.tensor / topology.flops
    local += 2 * model.layers * saved * tokens / topology.chip.bandwidth

    # Weights are gathered forward and backward and gradients scattered, in two bytes, once for each piece. libtpu sends
    # both as all-reduces, which cost twice, where they go along all sides of a slice.
    whole = 2 if mesh.fsdp * mesh.tensor == slice_size else 1
    sent = 3 * 2 * parameters / mesh.tensor * accumulate * whole * (1 - 1 / mesh.fsdp)
    summed = 2 * 2 * parameters / (mesh.fsdp * mesh.tensor) * accumulate  # gradients over `data`, as an all-reduce
    sent += summed * (1 - 1 / mesh.data)
    passes = 6 if remat == "full" else 4  # all-reduces of activations in a layer
    sent += passes * 2 * model.layers * tokens * model.width * 2 * (1 - 1 / mesh.tensor)
    network = sent / topology.chip.network
    network += summed / topology.chip.between_slices if topology.slices > 1 else 0.0

    state = (STATE_BYTES + GRADIENT_BYTES) * parameters / (mesh.fsdp * mesh.tensor)
    activations = tokens / accumulate * (model.layers * saved + working)
    layer = 2 * 2 * matmul_parameters(model, 0) / model.layers / mesh.tensor  # gathered, one layer ahead
    vocabulary = 8 * model.width * problem.vocabulary / mesh.tensor
    return max(local, network) + 0.1 * min(local, network), state + activations + layer + vocabulary


def _activation_bytes(model: Model, remat: str, tensor: int) -> tuple[float, float]:
    """Bytes for a token: what a layer keeps for the backward pass, and what is at hand while one is computed."""
    width = 2 if model.dtype == "bfloat16" else 4
    heads, kv_heads = model.heads * model.head_dim / tensor, model.kv_heads * model.head_dim / tensor
    ffn = model.ffn / tensor
    products = width * (2 * model.width + 2 * heads + 2 * kv_heads + 2 * ffn)
    everything = products + 6 * (2 * model.width + 2 * heads + kv_heads + 2 * ffn)
    kept = {"none": everything, "dots": products, "full": width * model.width}[remat]
    return kept, everything


def _meshes(problem: Problem) -> Iterator[MeshShape]:
    """Meshes whose parts divide the model and the slices, and that the torus of a slice can be cut into."""
    slices = problem.topology.slices
    inside = len(problem.topology.devices) // slices
    model = problem.model
    for tensor in TENSOR:
        if any(size % tensor for size in (inside, model.heads, model.kv_heads, model.ffn)):
            continue
        for fsdp in range(1, inside // tensor + 1):
            if inside // tensor % fsdp == 0 and model.width % fsdp == 0 and math.log2(fsdp).is_integer():
                mesh = MeshShape(data=slices * inside // tensor // fsdp, fsdp=fsdp, tensor=tensor)
                if _buildable(mesh, problem.topology):
                    yield mesh


def _buildable(mesh: MeshShape, topology: Topology) -> bool:
    try:
        build_mesh(mesh, topology.devices, split=False)
    except NotImplementedError:  # jax cuts the sides of a slice in no finer way
        return False
    return True
