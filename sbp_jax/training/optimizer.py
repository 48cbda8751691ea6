"""The optimizer, by name, and the learning rate by step."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from sbp_jax.config import Optimization
from sbp_jax.errors import SbpError

# Dimensions that a stacked matrix reads and writes; the layers in front are separate matrices. Muon turns matrices:
# optax would take every two-dimensional array for one, which stacking makes of norms and unmakes of matrices.
_MATRICES = {
    "query": MuonDimensionNumbers((1,), (2, 3)),
    "key": MuonDimensionNumbers((1,), (2, 3)),
    "value": MuonDimensionNumbers((1,), (2, 3)),
    "output": MuonDimensionNumbers((1, 2), (3,)),
    "gate": MuonDimensionNumbers((1,), (2,)),
    "up": MuonDimensionNumbers((1,), (2,)),
    "down": MuonDimensionNumbers((1,), (2,)),
}


def schedule(optimization: Optimization, steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up from 0, then a cosine down to the final rate, or a plateau and a line."""
    warmup = max(1, round(optimization.warmup * steps))
    peak, final = optimization.peak_lr, optimization.final_lr
    if optimization.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), final)
    decay = max(1, round(optimization.decay * steps))
    start = max(warmup, steps - decay)
    parts = [
        optax.linear_schedule(0.0, peak, warmup),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, final, max(1, steps - start)),
    ]
    return optax.join_schedules(parts, [warmup, start])


def optimizer(optimization: Optimization) -> optax.GradientTransformation:
    """The update at a learning rate of 1: the step multiplies it by `schedule`, whatever updates were left out before.

    Weight decay falls on matrices, not on the scales of norms.

    Raises:
      SbpError: optax has no optimizer of that name that takes a learning rate alone.
    """
    # For optimizers without a weight decay of their own. Updates point downhill, hence the sign.
    decay = optax.add_decayed_weights(-optimization.weight_decay, decayed)
    settings = {"b1": optimization.beta1, "b2": optimization.beta2, "weight_decay": optimization.weight_decay}
    if optimization.optimizer == "muon":
        orthogonalize = muon(
            1.0,
            adam_b1=optimization.beta1,
            adam_b2=optimization.beta2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,  # updates of AdamW's size, so that one rate serves both (Liu et al. 2025, section 2.2)
        )
        # Its own weight decay has no mask for what it leaves to Adam.
        transform = optax.chain(orthogonalize, decay)
    else:
        transform = _named(optimization.optimizer, settings, decay)
    return optax.chain(optax.clip_by_global_norm(optimization.clip), transform)


def _named(name: str, settings: dict[str, float], decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer of optax, given those of `settings` and the mask that it has parameters for."""
    make: Any = getattr(optax, name, None)
    parameters: Any = inspect.signature(make).parameters if callable(make) else {}
    wanted = [entry.name for entry in parameters.values() if entry.default is inspect.Parameter.empty]
    if wanted != ["learning_rate"] or not _is_downhill_at_any_rate(make):
        raise SbpError(
            f"optimizer={name}: optax has no optimizer of that name whose updates are proportional to a learning rate,"
            " the one thing it has to be told; adamw, muon, lion, lamb and sgd are some that would do"
        )
    known = {key: value for key, value in settings.items() if key in parameters}
    mask = {"mask": decayed} if "mask" in parameters else {}
    transform = make(learning_rate=1.0, **known, **mask)
    return transform if "weight_decay" in parameters else optax.chain(transform, decay)


def _is_downhill_at_any_rate(make: Any) -> bool:
    """Whether first updates go against the gradient, and half as far at half the rate."""
    parameters, gradients = {"x": jnp.ones((2, 2))}, {"x": jnp.full((2, 2), 0.5)}

    def first(rate: float) -> jax.Array:
        transform = make(learning_rate=rate)
        return transform.update(gradients, transform.init(parameters), parameters)[0]["x"]

    return bool(jnp.all(first(1.0) < 0) & jnp.allclose(first(1.0), 2 * first(0.5)))


def decayed(parameters: Any) -> Any:
    """True for matrices, False for the scales of norms, which stacking has made two-dimensional."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith("norm"), parameters)


def _matrices(parameters: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _MATRICES.get(path[-1].key), parameters)


def global_norm(tree: Any) -> jax.Array:
    """Square root of the sum of squares of all leaves, in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
