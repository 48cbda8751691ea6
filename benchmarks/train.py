"""Attention on a CPU: one head at a time against all heads at once, inside the real training step.

    python benchmarks/train.py [--width 128 --layers 2 --heads 2 --context 256 --rows 4]

Both are compiled and timed in this run, taking turns; the figure to compare is their ratio.
"""

import argparse
import time
from unittest import mock

import jax
import numpy as np

from sbp_jax.config import MeshShape, Model, Training
from sbp_jax.model import attention
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.training import step as training_step

VOCABULARY = 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("width", 128), ("layers", 2), ("heads", 2), ("context", 256), ("rows", 4), ("rounds", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    head_dim = options.width // options.heads
    model = Model(options.width, options.layers, options.heads, max(1, options.heads // 2), head_dim, 3 * options.width)
    training = Training(context=options.context, batch_rows=options.rows)
    mesh = build_mesh(MeshShape())
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (options.rows, options.context + 1)).astype(np.int32)
    whole = np.ones((options.rows, options.context), np.int32)
    positions = np.arange(options.context, dtype=np.int32) * whole
    batch = {"tokens": tokens, "segments": whole, "positions": positions, "mask": whole.astype(bool)}
    batch = training_step.to_device(batch, mesh)

    steps, states = {}, {}
    for name, function in (("head by head", attention._head_by_head), ("all heads", attention._fused)):
        with mock.patch.object(attention, "_head_by_head", function):  # what `attend` takes on a CPU
            training_step.train_step.cache_clear()
            steps[name] = training_step.train_step(model, VOCABULARY, training, 100, mesh)
            state = training_step.new_state(model, VOCABULARY, training, 100, 0, mesh)
            states[name], _ = steps[name](state, batch)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        print(f"{name:<14}{options.rows * options.context / np.median(times):>10,.0f} tokens/s")
    print(f"ratio         {np.median(seconds['all heads']) / np.median(seconds['head by head']):>10.2f}")


if __name__ == "__main__":
    main()
