"""One step of training as a jitted function of a sharded state and a batch.

Legend: B rows of the batch, T positions of a row, P pieces that a batch is computed in, S streams.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sbp_jax.config import Execution, Model, Optimization
from sbp_jax.model import attention
from sbp_jax.model.decoder import Decoder, Dropout
from sbp_jax.model.parameters import Parameters, abstract, bind, initialize, to_compute_dtype
from sbp_jax.parallel.sharding import activations, sharding
from sbp_jax.training.loss import target_nats, weighted_loss
from sbp_jax.training.optimizer import global_norm, optimizer, schedule

SPIKE_MEMORY = 0.98  # weight of the past in the recent gradient norm, an exponential mean
SPIKE_START = 50  # steps before that mean says anything


@dataclass(frozen=True)
class Setup:
    """Everything that decides the compiled programs of a run.

    Attributes:
      vocabulary: entries of the tokenizer.
      steps: of the whole run, for the schedule.
      streams: number of streams that the rows come from.
      execution: only what concerns training is used.
    """

    model: Model
    vocabulary: int
    optimization: Optimization
    steps: int
    streams: int
    mesh: Mesh
    execution: Execution

    @property
    def attend(self) -> attention.Attention:
        platform = self.mesh.devices.flat[0].platform
        return attention.choose(self.execution.attention, platform, self.model, self.optimization.context)


class State(NamedTuple):
    """All that training changes.

    Attributes:
      step: steps done.
      key: data of the random key, which only dropout uses.
      recent_norm: exponential mean of the gradient norm, for `skip_spikes`.
    """

    step: Any
    key: Any
    recent_norm: Any
    parameters: Parameters
    optimizer: Any


class StepMetrics(NamedTuple):
    """What a step says of itself, on the device.

    Attributes:
      nats: sum over the targets of the batch.
      rows, targets: int32 [S] of each stream.
      skipped: whether the update was left out, for a spike or for numbers that are not finite.
    """

    nats: Any
    rows: Any
    targets: Any
    gradient_norm: Any
    parameter_norm: Any
    learning_rate: Any
    skipped: Any


def abstract_state(setup: Setup) -> State:
    """Shape, dtype and sharding of every array of the state."""
    parameters = abstract(setup.model, setup.vocabulary, setup.mesh)
    whole = NamedSharding(setup.mesh, PartitionSpec())
    transform = optimizer(setup.optimization)

    def like(leaf: Any, placed: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    moments = optax.tree_utils.tree_map_params(
        transform,
        lambda leaf, parameter: like(leaf, parameter.sharding),
        jax.eval_shape(transform.init, parameters),
        parameters,
        transform_non_params=lambda leaf: like(leaf, whole),
    )
    scalar = partial(jax.ShapeDtypeStruct, (), sharding=whole)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=whole)
    return State(scalar(jnp.int32), key, scalar(jnp.float32), parameters, moments)


def abstract_batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of what `to_device` gives."""
    rows, context = setup.optimization.batch_rows, setup.optimization.context
    shapes: dict[str, tuple[tuple[int, ...], Any]]
    shapes = {"tokens": ((rows, context + 1), jnp.int32), "mask": ((rows, context), jnp.bool_)}
    shapes |= {name: ((rows, context), jnp.int32) for name in ("segments", "positions")}
    shapes["stream"] = ((rows,), jnp.int32)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding(shape, setup.mesh))
        for name, (shape, dtype) in shapes.items()
    }


def new_state(setup: Setup, seed: int, parameters: Parameters | None = None) -> State:
    """The state before the first step, from random parameters or from given ones, which are placed already."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup))
    if parameters is None:
        parameters = initialize(setup.model, setup.vocabulary, seed, setup.mesh)

    def rest() -> tuple[Array, Array, Array]:
        return jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(seed)), jnp.zeros((), jnp.float32)

    step, key, norm = jax.jit(rest, out_shardings=(shardings.step, shardings.key, shardings.recent_norm))()
    moments = jax.jit(optimizer(setup.optimization).init, out_shardings=shardings.optimizer)(parameters)
    return State(step, key, norm, parameters, moments)


@lru_cache(maxsize=8)
def train_step(setup: Setup) -> "InMesh":
    """The jitted step: loss and gradient of the global batch, divided once by its number of targets.

    It takes a `State`, which is donated, and a batch, and gives a `State` and `StepMetrics`. Arms of one shape share
    the compiled program. `lower` takes `abstract_state` and `abstract_batch` instead.
    """
    transform, rate = optimizer(setup.optimization), schedule(setup.optimization, setup.steps)
    spikes = setup.optimization.skip_spikes

    def loss(parameters: Parameters, batch: Any, dropout: Dropout | None) -> tuple[Array, Array]:
        """The piece's share of the batch's mean loss, and the nats of its targets."""
        decoder, hidden_BTD = _hidden_states(setup, parameters, batch, dropout)
        hidden_BTD, table_VD = decoder.unembed(hidden_BTD)
        targets_BT, z_loss = batch["tokens"][:, 1:], setup.optimization.z_loss
        loss, nats_BT = weighted_loss(hidden_BTD, table_VD, targets_BT, batch["weights"], setup.vocabulary, z_loss)
        return loss, jnp.sum(jnp.where(batch["mask"], nats_BT, 0.0))

    def gradients_of(state: State, batch: Any) -> tuple[Parameters, Array]:
        """Gradients of the batch's mean loss and the sum of its nats, piece by piece."""
        differentiate = jax.grad(loss, has_aux=True)
        if setup.execution.accumulate == 1:
            return differentiate(state.parameters, batch, _dropout(setup, state, batch["row"]))

        def piece(carry: tuple[Parameters, Array], batch: Any) -> tuple[tuple[Parameters, Array], None]:
            gradients, nats = differentiate(state.parameters, batch, _dropout(setup, state, batch["row"]))
            return jax.tree.map(jnp.add, carry, (gradients, nats)), None

        start = jax.tree.map(jnp.zeros_like, state.parameters), jnp.zeros((), jnp.float32)
        return jax.lax.scan(piece, start, _pieces(batch, setup.execution.accumulate))[0]

    def step(state: State, batch: Any) -> tuple[State, StepMetrics]:
        streams_BS = batch["stream"][:, None] == jnp.arange(setup.streams)
        targets_B = jnp.sum(batch["mask"], axis=1)
        targets_S = jnp.sum(jnp.where(streams_BS, targets_B[:, None], 0), axis=0)
        weights_BT = batch["mask"] / jnp.maximum(jnp.sum(targets_S), 1).astype(jnp.float32)
        rows_B = jnp.arange(len(streams_BS), dtype=jnp.int32)
        gradients, nats = gradients_of(state, batch | {"weights": weights_BT, "row": rows_B})
        norm, learning_rate = global_norm(gradients), jnp.asarray(rate(state.step), jnp.float32)
        usable = jnp.isfinite(norm) & jnp.isfinite(nats)
        recent_norm = state.recent_norm
        if spikes is not None:
            warm, most = state.step >= SPIKE_START, spikes * recent_norm
            usable &= ~warm | (norm <= most)
            entering = jnp.where(warm, jnp.minimum(norm, most), norm)  # a lasting rise is taken for normal in the end
            memory = jnp.minimum(SPIKE_MEMORY, state.step / (state.step + 1.0))
            recent_norm = jnp.where(jnp.isfinite(norm), memory * recent_norm + (1 - memory) * entering, recent_norm)

        updates, moments = transform.update(gradients, state.optimizer, state.parameters)
        parameters = jax.tree.map(lambda leaf, update: leaf + learning_rate * update, state.parameters, updates)
        keep = partial(jax.tree.map, lambda new, old: jnp.where(usable, new, old))
        parameters, moments = keep(parameters, state.parameters), keep(moments, state.optimizer)
        metrics = StepMetrics(
            nats, jnp.sum(streams_BS, axis=0), targets_S, norm, global_norm(parameters), learning_rate, ~usable
        )
        return State(state.step + 1, state.key, recent_norm, parameters, moments), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup))
    whole = NamedSharding(setup.mesh, PartitionSpec())
    return InMesh(jax.jit(step, donate_argnums=0, out_shardings=(shardings, StepMetrics(*[whole] * 7))), setup.mesh)


@lru_cache(maxsize=8)
def evaluation_step(setup: Setup) -> "InMesh":
    """From parameters and a batch the nats of each target [B, T], zero where the mask is off, whole on every host."""

    def losses(parameters: Parameters, batch: Any) -> Array:
        decoder, hidden_BTD = _hidden_states(setup, parameters, batch, None)
        nats_BT = target_nats(*decoder.unembed(hidden_BTD), batch["tokens"][:, 1:], setup.vocabulary)
        return jnp.where(batch["mask"], nats_BT, 0.0)

    return InMesh(jax.jit(losses, out_shardings=NamedSharding(setup.mesh, PartitionSpec())), setup.mesh)


class InMesh:
    """A jitted function that is traced and called with its mesh in use."""

    def __init__(self, jitted: Any, mesh: Mesh):
        self._jitted, self._mesh = jitted, mesh

    def __call__(self, *arguments: Any) -> Any:
        with activations(self._mesh):
            return self._jitted(*arguments)

    def lower(self, *arguments: Any) -> Any:
        with activations(self._mesh):
            return self._jitted.lower(*arguments)


def rows_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where an array with a leading dimension of rows belongs."""
    return sharding(("batch", *[None] * (len(shape) - 1)), shape, mesh)


def _hidden_states(setup: Setup, parameters: Parameters, batch: Any, dropout: Dropout | None) -> tuple[Decoder, Array]:
    """The bound decoder, and the hidden states of a batch before the final norm."""
    # Cast whole, before layers are taken apart: devices then gather each other's parts in the smaller dtype.
    decoder = bind(setup.model, setup.vocabulary, to_compute_dtype(setup.model, parameters))
    tokens_BT = batch["tokens"][:, :-1]
    remat = setup.execution.remat
    return decoder, decoder.hidden(tokens_BT, batch["segments"], batch["positions"], setup.attend, remat, dropout)


def _dropout(setup: Setup, state: State, rows_B: Array) -> Dropout | None:
    if setup.optimization.dropout == 0.0:
        return None
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return Dropout(setup.optimization.dropout, jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B))


def _pieces(batch: Any, count: int) -> Any:
    """[B, ...] as [P, B / P, ...]; a piece takes every P-th row, so that each device keeps its own."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)
