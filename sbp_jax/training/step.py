"""One step of training as a jitted function of a sharded state and a batch.

Legend: B rows of the batch, T positions of a row, V vocabulary.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sbp_jax.config import Model, Optimization
from sbp_jax.data.mixing import Batch
from sbp_jax.model.parameters import Parameters, abstract, bind, initialize
from sbp_jax.parallel.sharding import activations, sharding
from sbp_jax.training.optimizer import optimizer, schedule


class State(NamedTuple):
    """All that training changes: the number of steps done, the parameters, the optimizer's moments."""

    step: Any
    parameters: Parameters
    optimizer: Any


class StepMetrics(NamedTuple):
    """Sums over one batch, on the device."""

    nats: Any
    targets: Any
    gradient_norm: Any
    parameter_norm: Any
    learning_rate: Any


def cross_entropy(logits_BTV: Float[Array, "B T V"], targets_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log-likelihood of each target in nats, in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV.astype(jnp.float32), targets_BT)


def losses(model: Model, vocabulary: int, parameters: Parameters, batch: Any) -> Float[Array, "B T"]:
    """Nats of each target of a batch, zero where the mask is off."""
    tokens = batch["tokens"]
    logits_BTV = bind(model, vocabulary, parameters)(tokens[:, :-1], batch["segments"], batch["positions"])
    return jnp.where(batch["mask"], cross_entropy(logits_BTV, tokens[:, 1:]), 0.0)


def new_state(
    model: Model,
    vocabulary: int,
    optimization: Optimization,
    steps: int,
    seed: int,
    mesh: Mesh,
    parameters: Parameters | None = None,
) -> State:
    """The state before the first step, from random parameters or from given ones."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, vocabulary, optimization, steps, mesh))
    if parameters is None:
        parameters = initialize(model, vocabulary, seed, mesh)
    moments = jax.jit(optimizer(optimization, steps).init, out_shardings=shardings.optimizer)(parameters)
    return State(jax.device_put(jnp.zeros((), jnp.int32), shardings.step), parameters, moments)


def abstract_state(model: Model, vocabulary: int, optimization: Optimization, steps: int, mesh: Mesh) -> State:
    """Shape, dtype and sharding of every array of the state."""
    parameters = abstract(model, vocabulary, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    transform = optimizer(optimization, steps)

    def like(leaf: Any, placed: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    moments = optax.tree_utils.tree_map_params(
        transform,
        lambda leaf, parameter: like(leaf, parameter.sharding),
        jax.eval_shape(transform.init, parameters),
        parameters,
        transform_non_params=lambda leaf: like(leaf, whole),
    )
    return State(jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), parameters, moments)


@lru_cache(maxsize=8)
def train_step(
    model: Model, vocabulary: int, optimization: Optimization, steps: int, mesh: Mesh
) -> Callable[[State, Any], tuple[State, StepMetrics]]:
    """The jitted step: loss and gradient of the global batch, divided once by its number of targets.

    The state is donated. Arms of one shape share the compiled program.
    """
    transform, rate = optimizer(optimization, steps), schedule(optimization, steps)

    def step(state: State, batch: Any) -> tuple[State, StepMetrics]:
        targets = jnp.sum(batch["mask"])

        def mean_loss(parameters: Parameters) -> tuple[jax.Array, jax.Array]:
            nats = jnp.sum(losses(model, vocabulary, parameters, batch))
            return nats / jnp.maximum(targets, 1), nats

        gradients, nats = jax.grad(mean_loss, has_aux=True)(state.parameters)
        updates, moments = transform.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        norms = optax.tree.norm(gradients), optax.tree.norm(parameters)
        return State(state.step + 1, parameters, moments), StepMetrics(
            nats, targets, *norms, jnp.asarray(rate(state.step))
        )

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, vocabulary, optimization, steps, mesh))
    whole = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, StepMetrics(*[whole] * 5)))

    def run(state: State, batch: Any) -> tuple[State, StepMetrics]:
        with activations(mesh):
            return jitted(state, batch)

    return run


def to_device(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """The arrays that the step reads, rows spread over the batch axes of the mesh."""
    names = ("tokens", "segments", "positions", "mask")
    return {name: jax.device_put(batch[name], sharding(("batch", None), batch[name].shape, mesh)) for name in names}
