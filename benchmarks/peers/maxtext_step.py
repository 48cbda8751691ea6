"""Training steps of a 6.3M Qwen3 in MaxText on a CPU: its own state, jitted step and AdamW, on random tokens.

.venv-peers/maxtext/bin/python benchmarks/peers/maxtext_step.py [--remat full --steps 10]
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402  (reads the environment)
import shapes  # noqa: E402
from flax import nnx  # noqa: E402
from maxtext.trainers.pre_train import train  # noqa: E402
from maxtext.utils import maxtext_utils, sharding, train_utils  # noqa: E402
from maxtext_settings import settings  # noqa: E402
from stopwatch import measure  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--remat", choices=("none", "full"), default="none")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    shape = shapes.DECODER_6M
    config, recorder = train.initialize(
        settings(shape, dtype="float32", remat=options.remat, attention="dot_product", hardware="cpu")
    )
    # The beginning of its `train_loop`.
    _, _, shardings, _, mesh, *_, state = train_utils.setup_train_loop(config, recorder)
    graph, state = nnx.split(state)
    parameters, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    train_step, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, train.train_step, train.eval_step, None, parameters
    )
    wanted = maxtext_utils.get_shaped_batch(config, batch_sharding=sharding.get_input_data_sharding(config, mesh))
    rows = shapes.rows(shape)
    batch = train.make_synthetic_batch(config, wanted)  # for segments and positions
    batch["inputs"] = jax.device_put(rows[:, :-1], batch["inputs"].sharding)
    batch["targets"] = jax.device_put(rows[:, 1:], batch["targets"].sharding)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh), train.logical_axis_rules(config.logical_axis_rules):
            state, metrics = train_step(state, batch)
        return float(metrics["scalar"]["learning/loss"])

    measure(step, shape["rows"] * shape["context"], options.steps, ("maxtext", "jax", "flax"))


if __name__ == "__main__":
    main()
