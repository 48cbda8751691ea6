"""A plan for generating on a TPU: how many slots fit beside the weights, and how fast they could be at best.

Copies of the model share nothing, so one is compiled, as the engine compiles it, and the others are as it is.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from etils import epath

from sbp_jax.config import Execution, Experiment, MeshShape, Model
from sbp_jax.errors import SbpError
from sbp_jax.generation.programs import TPU_PAGE, Programs, programs
from sbp_jax.model.decoder import padded_vocabulary
from sbp_jax.model.parameters import count
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.parallel.sharding import activations
from sbp_jax.planning import bandwidth, hlo
from sbp_jax.planning.bandwidth import Documents
from sbp_jax.planning.compile import compile_program, device_bytes
from sbp_jax.planning.search import FULL, TENSOR
from sbp_jax.planning.topology import Topology, get_topology
from sbp_jax.text import tokenizer

DOCUMENT = 828  # tokens of a document of DCLM on average: 482B tokens in 582M documents (SBP, section 4)
ROOM = 1.1  # cache, in terms of what the slots hold on average: not all hold as much at any time
MULTIPLE = 8  # of slots; a TPU pads rows to that
MOST_COMPILED = 4  # numbers of slots for one way to cut the model
AIM = 0.99  # of the memory that slots may fill, so that an estimate a little too small still fits
NEAR = 0.03  # of the slots: a number that is so much greater is not worth another compilation
CODE_BYTES, WORKING_BYTES = 20e6, 0.5e9  # of a layer; of the rest: a first guess
COPIES = 2.5  # caches of a layer that are temporaries: a first guess


@dataclass(frozen=True)
class Asked:
    """What is compiled, but for the number of slots.

    Attributes:
      rows: of the embedding table.
      mesh: of one copy of the model.
      cache_tokens: None: as many as the slots hold on average, and `ROOM`.
    """

    model: Model
    rows: int
    documents: Documents
    context: int
    topology: Topology
    mesh: MeshShape
    execution: Execution

    @property
    def devices(self) -> int:
        return self.mesh.fsdp * self.mesh.tensor

    def covered(self) -> float:
        """Positions of a slot's pages on average: half of the last one is empty, and a call's tokens have room."""
        pages = -(-self.context // TPU_PAGE)
        return min(self.documents.held + self.execution.decode_steps + TPU_PAGE / 2, pages * TPU_PAGE)

    def cache_tokens(self, slots: int) -> int:
        """Positions of all pages."""
        pages = -(-self.context // TPU_PAGE)
        asked = self.execution.cache_tokens
        asked = math.ceil(slots * self.covered() * ROOM) if asked is None else asked
        return TPU_PAGE * min(max(pages, -(-asked // TPU_PAGE)), slots * pages)


@dataclass(frozen=True)
class Attempt:
    """What the compiler says of so many slots; bytes on one device.

    Attributes:
      temporaries: of the program that has more of them; with results that take no argument's place.
      code: of both programs.
      peak: all that is held while the larger one runs; None: the compiler gave up, and would need `needed`.
      copied_a_step, copied_a_call: bytes of copies of the cache, once in a step and once in a call.
      traffic: bytes that a device sends in a step, by kind of collective; once a call's are among it.
    """

    slots: int
    cache_tokens: int
    weights: int
    cache: int
    temporaries: int | None
    code: int | None
    peak: int | None
    needed: int
    copied_a_step: float
    copied_a_call: float
    traffic: dict[str, hlo.Traffic]
    seconds: float


def plan(
    experiment: Experiment,
    topology: str,
    *,
    slots: int | None = None,
    tensor: int | None = None,
    tokens: float = 100e9,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    utilisation: float = 0.6,
    prompt_utilisation: float = 0.4,
) -> dict[str, Any]:
    """Compiles the engine's programs for devices of a topology, with the most slots that fit, as plain values.

    Args:
      topology: such as "v5p:2x2x1".
      slots: None: searched for.
      tensor: parts that a copy of the model is cut into. None: as `execution.mesh` says, or as few as fit.
      tokens: new ones, of which the cost is told.
      prompt_tokens, new_tokens: of a document on average. None: of `DOCUMENT`, as far as the context has room.

    Returns:
      The plan; `chosen` is None where nothing fits.

    Raises:
      SbpError: the topology or a number makes no sense, or libtpu is missing.
    """
    documents = _documents(experiment, prompt_tokens, new_tokens)
    target = get_topology(topology)
    vocabulary = experiment.tokenizer.vocab_size
    if experiment.tokenizer.path is not None:
        vocabulary = tokenizer.load(epath.Path(experiment.tokenizer.path).expanduser(), experiment.tokenizer).vocab_size
    rows = padded_vocabulary(vocabulary)
    tried: list[tuple[Asked, Attempt]] = []
    chosen = None
    for mesh in _meshes(experiment, target, tensor):
        asked = Asked(experiment.model, rows, documents, experiment.tuning.context, target, mesh, experiment.execution)
        found, attempts = search(asked, slots, partial(attempt, asked, vocabulary))
        tried += [(asked, made) for made in attempts]
        if found is not None:
            chosen = (asked, found)
            break
    layout = None
    if chosen is not None:
        asked, found = chosen
        made = bandwidth.speed(asked.model, rows, documents, found.slots, asked.devices, target)
        priced = bandwidth.cost(asked.model, documents, tokens, made, target, utilisation, prompt_utilisation)
        sent = sum(traffic.bytes for traffic in found.traffic.values())
        layout = {
            **_plain(asked, found),
            "copies": len(target.devices) // asked.devices,
            "tokens_in_flight": found.slots * documents.held,
            "speed": made,
            "cost": priced,
            "network_seconds_at_peak": sent / target.chip.network,
            "set": _assignments(asked, found),
        }
    return {
        "experiment": experiment.name,
        "model": {"parameters": count(experiment.model, vocabulary), "dtype": experiment.model.dtype},
        "topology": {
            "name": target.name,
            "chips": target.chips,
            "devices": len(target.devices),
            "device_kind": target.kind,
            "memory": int(target.memory),
            "flops": target.flops,
            "bandwidth": target.chip.bandwidth,
        },
        "context": experiment.tuning.context,
        "documents": asdict(documents),
        "page": TPU_PAGE,
        "decode_steps": experiment.execution.decode_steps,
        "chosen": layout,
        "tried": [_plain(*made) for made in tried],
    }


def search(asked: Asked, slots: int | None, compiled: Callable[[int], Attempt]) -> tuple[Attempt | None, list[Attempt]]:
    """Compiles numbers of slots, guided by what the compiler said of those before, until the memory is nearly full.

    Returns:
      The one with the most slots that fits, or None, and all that were compiled.
    """
    limit = FULL * asked.topology.memory
    tried: list[Attempt] = []
    number = slots if slots is not None else guess(asked)
    while number >= 1 and len(tried) < MOST_COMPILED:
        made = compiled(number)
        tried.append(made)
        if slots is not None or asked.execution.cache_tokens is not None:
            limit = asked.topology.memory
            break
        fitting = [other.slots for other in tried if other.needed <= limit]
        failing = [other.slots for other in tried if other.needed > limit]
        # All but weights and code is taken to grow with the slots.
        fixed = made.weights + (made.code or CODE_BYTES * asked.model.layers / asked.mesh.tensor)
        number = _rounded((AIM * limit - fixed) / (made.needed - fixed) * made.slots)
        if failing and number >= min(failing):
            number = _rounded(min(failing) * (1 - NEAR))
        if fitting and number <= max(fitting) * (1 + NEAR):
            break
    fitting_attempts = [made for made in tried if made.peak is not None and made.peak <= limit]
    return max(fitting_attempts, key=lambda made: made.slots, default=None), tried


def guess(asked: Asked) -> int:
    """Slots that may fit, by a rough model of memory; 0: the weights alone leave no room."""
    model, parts = asked.model, asked.mesh.tensor
    if asked.execution.cache_tokens is not None:
        return max(1, round(asked.execution.cache_tokens / asked.covered() / ROOM))
    room = FULL * asked.topology.memory - WORKING_BYTES - CODE_BYTES * model.layers / parts
    room -= count(model, asked.rows) * np.dtype(model.dtype).itemsize / parts / asked.mesh.fsdp
    position = bandwidth.position_bytes(model) / parts
    cache = position * (asked.covered() * ROOM * (1 + COPIES / model.layers) + asked.execution.decode_steps)
    return _rounded(room / (cache + 16 * asked.rows / parts))  # logits and what is made of them, in float32


def attempt(asked: Asked, vocabulary: int, slots: int) -> Attempt:
    """Compiles both programs of the engine."""
    cache_tokens = asked.cache_tokens(slots)
    made = programs(
        asked.model,
        asked.rows,
        vocabulary,
        0,  # which tokens are special changes nothing
        1,
        context=asked.context,
        mesh=build_mesh(asked.mesh, asked.topology.devices[: asked.devices]),
        slots=slots,
        decode_steps=asked.execution.decode_steps,
        seed=0,
        cache_tokens=cache_tokens,
    )
    given = device_bytes(made.parameters), device_bytes(made.caches)
    with activations(made.mesh):
        decode = compile_program(made.decode, made.parameters, made.caches, made.slots, *made.decode_arguments)
        read = compile_program(made.read, made.parameters, made.caches, *made.read_arguments)
    if isinstance(decode, int) or isinstance(read, int):
        needed = max(program if isinstance(program, int) else program.peak for program in (decode, read))
        return Attempt(slots, cache_tokens, *given, None, None, None, needed, 0, 0, {}, 0)
    # What a program does not use is no argument of it, but it is held all the same; with the arguments' padding.
    held = max(decode.arguments, read.arguments)
    temporaries = max(decode.results + decode.temporaries, read.results + read.temporaries)
    code = decode.code + read.code
    peak = held + temporaries + code
    a_call, a_step = hlo.copies(decode.text, _page_shapes(made))
    traffic, _ = hlo.collectives(decode.text)  # its loop of steps has no known length, and counts once
    return Attempt(
        slots,
        cache_tokens,
        *given,
        temporaries,
        code,
        peak,
        peak,
        a_step,
        a_call,
        traffic,
        decode.seconds + read.seconds,
    )


def _page_shapes(made: Programs) -> set[tuple[int, ...]]:
    """Shapes of one device's part of the keys and values of a layer."""
    layer = made.caches[0]
    return {leaf.sharding.shard_shape(leaf.shape) for leaf in (layer.keys, layer.values)}


def _documents(experiment: Experiment, prompt: int | None, new: int | None) -> Documents:
    context = experiment.tuning.context
    usual_new = min(DOCUMENT, experiment.synthesis.max_new_tokens, context // 2)
    new = new if new is not None else usual_new if prompt is None else min(usual_new, context - prompt)
    prompt = prompt if prompt is not None else min(DOCUMENT * experiment.tuning.conditioning, context - new)
    if prompt < 1 or new < 1 or prompt + new > context:
        raise SbpError(
            f"prompts of {prompt:,} tokens and {new:,} new ones do not fit a context of {context:,}; choose others"
            " with --prompt-tokens and --new-tokens, each at least 1, or raise it with --set tuning.context"
        )
    return Documents(prompt, new)


def _meshes(experiment: Experiment, topology: Topology, tensor: int | None) -> list[MeshShape]:
    """Ways to cut one copy of the model, the smallest first."""
    model, asked = experiment.model, experiment.execution.mesh
    total = len(topology.devices)
    if tensor is None and (asked.fsdp, asked.tensor) == (1, 1):
        sizes = [size for size in TENSOR if not _uneven(model, size) and size <= total]
        return [MeshShape(1, 1, size) for size in sizes]
    mesh = MeshShape(1, asked.fsdp if tensor is None else 1, asked.tensor if tensor is None else tensor)
    if mesh.tensor < 1 or mesh.fsdp < 1 or mesh.fsdp * mesh.tensor > total:
        raise SbpError(
            f"a copy of the model cut into fsdp {mesh.fsdp} x tensor {mesh.tensor} parts does not fit the {total}"
            f" devices of {topology.name}; choose another --tensor or topology"
        )
    if _uneven(model, mesh.tensor):
        raise SbpError(
            f"tensor {mesh.tensor} does not divide {model.heads} heads, {model.kv_heads} key-value heads and a"
            f" feed-forward width of {model.ffn:,}; choose another --tensor"
        )
    return [mesh]


def _uneven(model: Model, parts: int) -> bool:
    return any(size % parts for size in (model.heads, model.kv_heads, model.ffn))


def _rounded(slots: float) -> int:
    whole = int(slots)
    return whole - whole % MULTIPLE if whole >= MULTIPLE else max(whole, 0)


def _assignments(asked: Asked, made: Attempt) -> list[str]:
    """What `--set` needs to generate so."""
    cut = [f"execution.mesh.{axis}={size}" for axis, size in asdict(asked.mesh).items() if axis != "data" and size > 1]
    return [*cut, f"execution.slots={made.slots}", f"execution.cache_tokens={made.cache_tokens}"]


def _plain(asked: Asked, made: Attempt) -> dict[str, Any]:
    fits = made.peak is not None and made.peak <= asked.topology.memory
    shape = {"mesh": asdict(asked.mesh), "devices": asked.devices, "fits": fits}
    return {**shape, **asdict(made), "seconds": round(made.seconds, 1)}
