# ruff: noqa: E402
"""What this package takes for the figures of `benchmarks/train.py`; each prints one line of JSON.

python benchmarks/ours.py throughput --dtype bfloat16
python benchmarks/ours.py cpu --remat full
python benchmarks/ours.py memory | overhead | data | mfu
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # the same shapes and the same stopwatch as theirs

from sbp_jax.parallel import machine

machine.prepare()  # as the command line does

import jax
import numpy as np
import shapes
import stopwatch
from etils import epath

from sbp_jax.config import Execution, MeshShape, Model, Training
from sbp_jax.data.mixing import Plan
from sbp_jax.data.rows import Row
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.planning.compile import compile_step
from sbp_jax.planning.topology import get_topology
from sbp_jax.training.batches import to_device
from sbp_jax.training.flops import flops_per_token, peak_flops
from sbp_jax.training.loop import METRICS, Run, train
from sbp_jax.training.metrics import read_metrics
from sbp_jax.training.step import Setup, new_state, train_step

TINY = dict(width=16, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=16, vocabulary=128, rows=1, context=8)
ONE_BILLION = dict(
    width=2048, layers=16, heads=16, kv_heads=8, head_dim=128, ffn=5632, vocabulary=49_152, rows=16, context=4096
)
PACKAGES = ("sbp_jax", "jax", "flax")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("figure", choices=("throughput", "cpu", "memory", "overhead", "data", "mfu"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "full"), default="none")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    if options.figure == "throughput":
        steps(shapes.QWEN3_16M, options.dtype, options.remat, options.steps)
    elif options.figure == "cpu":
        steps(shapes.DECODER_6M, options.dtype, options.remat, options.steps)
    elif options.figure == "memory":
        memory()
    elif options.figure == "overhead":
        overhead()
    elif options.figure == "data":
        data(options.steps)
    else:
        mfu(options.steps)


def set_up(shape: dict[str, int], dtype: str, execution: Execution, mesh: jax.sharding.Mesh) -> Setup:
    """The programs of a run of a shape, `rows` being those of one device."""
    sizes = {name: shape[name] for name in ("width", "layers", "heads", "kv_heads", "head_dim", "ffn")}
    model = Model(
        **sizes,
        rope_base=shapes.ROPE_BASE,
        norm_epsilon=shapes.NORM_EPSILON,
        tied_embeddings=False,
        dtype=dtype,
    )
    training = Training(
        context=shape["context"],
        batch_rows=shape["rows"] * mesh.size,
        peak_lr=shapes.LEARNING_RATE,
        final_lr=shapes.LEARNING_RATE,
        warmup=0.0,
        weight_decay=shapes.WEIGHT_DECAY,
        beta1=shapes.BETA1,
        beta2=shapes.BETA2,
        clip=shapes.CLIP,
        evaluate_every=10**9,
    )
    return Setup(model, shape["vocabulary"], training, 10_000, 1, mesh, execution)


def batch_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of tokens [B, T + 1] as the step reads them, each one document."""
    whole = np.ones((len(rows), rows.shape[1] - 1), np.int32)
    positions = np.arange(whole.shape[1], dtype=np.int32) * whole
    stream = np.zeros(len(rows), np.int32)
    return {"tokens": rows, "segments": whole, "positions": positions, "mask": whole.astype(bool), "stream": stream}


def steps(shape: dict[str, int], dtype: str, remat: str, count: int) -> None:
    """Times the real step on one batch that stays on the device."""
    setup = set_up(shape, dtype, Execution(remat=remat), build_mesh(MeshShape()))
    step, state = train_step(setup), new_state(setup, 0)
    batch = to_device(batch_of(shapes.rows(shape)), setup.mesh, setup.optimization.batch_rows)

    def once() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics.nats) / int(metrics.targets.sum())

    stopwatch.measure(once, shape["rows"] * shape["context"], count, PACKAGES)


def memory() -> None:
    """What the compiler says of the 3B model's step on each of 64 chips of v5p."""
    topology = get_topology("v5p:4x4x4")
    devices = np.array(topology.devices).reshape(1, len(topology.devices), 1)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    compiled = compile_step(set_up(shapes.PAPER_3B, "bfloat16", Execution(remat="full"), mesh)).memory
    line = {
        "argument_bytes": compiled.parameters + compiled.optimizer + compiled.batch,
        "temp_bytes": compiled.activations,
        "generated_code_bytes": compiled.code,
        "versions": stopwatch.versions((*PACKAGES, "libtpu")),
    }
    print(json.dumps(line))


class Rows:
    """Rows of random tokens in memory, each one document."""

    def __init__(self, shape: dict[str, int], count: int):
        size = count, shape["context"] + 1
        self._tokens = np.random.default_rng(0).integers(0, shape["vocabulary"], size).astype(np.int32)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Row:
        length = self._tokens.shape[1] - 1
        whole = np.ones(length, np.int32)
        positions = np.arange(length, dtype=np.int32)
        return Row(self._tokens[index], whole, positions, np.full(length, index, np.int64), whole.astype(bool))


def loop_metrics(shape: dict[str, int], count: int) -> tuple[Setup, list[dict[str, Any]]]:
    """The real training loop on rows in memory: its programs and the lines of its metrics."""
    setup = set_up(shape, "float32", Execution(tensorboard=False), build_mesh(MeshShape()))
    rows = setup.optimization.batch_rows
    run = Run(
        model=setup.model,
        vocabulary=setup.vocabulary,
        optimization=setup.optimization,
        streams={"real": Rows(shape, rows * count)},
        plan=Plan({"real": rows * count}, {"real": rows * count}),
        validation=Rows(shape, rows),
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(run, epath.Path(folder), "benchmark", setup.mesh)
        return setup, read_metrics(epath.Path(folder) / METRICS)


def overhead() -> None:
    """Milliseconds a step that the loop adds to the compiled step, with a model that is as good as none."""
    count = 2000
    setup, lines = loop_metrics(TINY, count)
    middle = lines[count // 10 : -1]
    loop_seconds = (middle[-1]["time"] - middle[0]["time"]) / (len(middle) - 1)
    step, state = train_step(setup), new_state(setup, 0)
    batch = to_device(batch_of(shapes.rows(TINY)), setup.mesh, setup.optimization.batch_rows)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    step_seconds = statistics.median(times)
    line = {
        "loop_milliseconds": 1e3 * loop_seconds,
        "step_milliseconds": 1e3 * step_seconds,
        "overhead_milliseconds": 1e3 * (loop_seconds - step_seconds),
        "versions": stopwatch.versions(PACKAGES),
    }
    print(json.dumps(line))


def data(count: int) -> None:
    """Fraction of the time of a step of the 15.7M model in which the loop waits for its batch."""
    _, lines = loop_metrics(shapes.QWEN3_16M, count + stopwatch.WARM_UP)
    counted = lines[stopwatch.WARM_UP - 1 :]
    seconds = counted[-1]["time"] - counted[0]["time"]
    waited = sum(line["data_seconds"] for line in counted[1:])
    versions = stopwatch.versions(PACKAGES)
    print(json.dumps({"data_wait_percent": 100 * waited / seconds, "versions": versions}))


def mfu(count: int) -> None:
    """Model FLOPs utilisation of a 1B model in bfloat16 on the devices at hand."""
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind)
    if peak is None:
        raise SystemExit(f"no accelerator whose peak is known: this is {device.device_kind}")
    shape, count_devices = ONE_BILLION, jax.device_count()
    mesh = build_mesh(MeshShape(data=1, fsdp=count_devices))
    setup = set_up(shape, "bfloat16", Execution(remat="dots"), mesh)
    step, state = train_step(setup), new_state(setup, 0)
    rows = np.tile(shapes.rows(shape), (count_devices, 1))
    batch = to_device(batch_of(rows), mesh, setup.optimization.batch_rows)
    times = []
    for _ in range(count + stopwatch.WARM_UP):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    rate = rows[:, 1:].size / statistics.median(times[stopwatch.WARM_UP :])
    flops = flops_per_token(setup.model, setup.vocabulary, shape["context"])
    line = {
        "mfu_percent": 100 * rate * flops / (peak * count_devices),
        "tokens_per_second": rate,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "device": device.device_kind,
        "versions": stopwatch.versions(PACKAGES),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
