"""AdamW with clipping, linear warm-up and cosine decay."""

from typing import Any

import jax
import optax

from sbp_jax.config import Optimization


def schedule(optimization: Optimization, steps: int) -> optax.Schedule:
    """Learning rate by step: from 0 up to the peak, then a cosine down to the final rate."""
    warmup = max(1, round(optimization.warmup * steps))
    return optax.warmup_cosine_decay_schedule(
        0.0, optimization.peak_lr, warmup, max(steps, warmup + 1), optimization.final_lr
    )


def optimizer(optimization: Optimization, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(optimization.clip),
        optax.adamw(
            schedule(optimization, steps),
            b1=optimization.beta1,
            b2=optimization.beta2,
            weight_decay=optimization.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(parameters: Any) -> Any:
    """True for matrices, False for the scales of norms, which stacking has made two-dimensional."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith("norm"), parameters)
