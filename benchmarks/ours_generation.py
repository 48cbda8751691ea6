# ruff: noqa: E402
"""Generation with the engine of this package, as `benchmarks/synthesis.py` measures it, and what all are measured on.

python benchmarks/ours_generation.py prepare FOLDER
python benchmarks/ours_generation.py generate FOLDER PROMPTS.json [--new 128 --dtype bfloat16 --slots 64]
python benchmarks/ours_generation.py mixed FOLDER [--requests 400]
python benchmarks/ours_generation.py bandwidth [--slots 64 128 256]     # a 3B model of random weights, on a GPU
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # the same stopwatch as theirs

from sbp_jax.parallel import machine

machine.prepare()  # as the command line does

import jax
import numpy as np
import stopwatch
from etils import epath

from sbp_jax.config import Execution, MeshShape, Model
from sbp_jax.generation import replicas
from sbp_jax.generation.engine import Engine
from sbp_jax.generation.requests import Request, Sampling
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import abstract, initialize, to_compute_dtype
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text.tokenizer import TextTokenizer

MODEL = Model(width=384, layers=6, heads=6, kv_heads=2, head_dim=64, ffn=1024)  # 12.6M parameters
VOCABULARY, PROMPTS, SHORTEST, LONGEST = 8192, 64, 32, 512
THREE_BILLION = Model(  # as configs/paper_200b_3b.py has it
    width=3072,
    layers=26,
    heads=24,
    kv_heads=8,
    head_dim=128,
    ffn=8064,
    rope_base=500_000.0,
    tied_embeddings=False,
    dtype="bfloat16",
)
PAPER_VOCABULARY = 49_152
DATASHEET = {"NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA H200": 4.8e12}  # bytes a second
CONTEXT = 640


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("prepare", "generate", "mixed", "bandwidth"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("prompts", type=Path, nargs="?")
    parser.add_argument("--keep", action="store_true", help="the model that is there")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--slots", type=int, nargs="+", default=[Execution().slots])
    parser.add_argument("--steps", type=int, default=Execution().decode_steps)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--texts", type=Path, help="a file for the tokens, in the order of the prompts")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder, options.keep)
    elif options.what == "generate":
        generate(options)
    elif options.what == "mixed":
        mixed(options)
    else:
        bandwidth(options.slots, options.steps)


def prepare(folder: Path, keep: bool) -> None:
    """Writes prompts, and unless there is to be kept a model of random weights, large enough that texts differ."""
    vocabulary = huggingface.inspect(epath.Path(folder)).vocabulary if keep else VOCABULARY
    if not keep:
        _save_random(folder)
    random = np.random.default_rng(0)
    lengths = random.integers(SHORTEST, LONGEST + 1, PROMPTS)
    prompts = [random.integers(1, vocabulary, length).tolist() for length in lengths]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    print(json.dumps({"prompts": len(prompts), "tokens": int(lengths.sum())}))


def _save_random(folder: Path) -> None:
    parameters = jax.device_get(initialize(MODEL, VOCABULARY, 0, build_mesh(MeshShape())))
    scaled = jax.tree.map(lambda array: array if np.all(array == 1) else array * 4, parameters)
    huggingface.save(epath.Path(folder), scaled, MODEL, VOCABULARY, CONTEXT, 0)


def generate(options: argparse.Namespace) -> None:
    """Greedy texts of a fixed length, everything after the warm-up counted."""
    prompts = json.loads(options.prompts.read_text())
    engines = _engines(options, max(map(len, prompts)) + options.new)
    requests = [
        Request(number, number, 0, np.array(tokens, np.int32), options.new, Sampling(temperature=0.0))
        for number, tokens in enumerate(prompts)
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    completions = replicas.generate(engines, _dealt(requests))
    texts = {completion.request.number: completion.tokens.tolist() for completion in completions}
    _print(engines, time.perf_counter() - wall, time.process_time() - cpu)
    assert {len(text) for text in texts.values()} == {options.new}
    if options.texts:
        options.texts.write_text(json.dumps([texts[number] for number in range(len(prompts))]))


def mixed(options: argparse.Namespace) -> None:
    """Sampled texts of very different lengths, prompts too: how busy the slots are, and the host."""
    random = np.random.default_rng(1)
    engines = _engines(options, CONTEXT)
    requests = []
    for number in range(options.requests):
        length, new = int(random.integers(16, 384)), int(np.clip(random.exponential(128), 8, 256))
        prompt = random.integers(1, VOCABULARY, length).astype(np.int32)
        requests.append(Request(number, number, 0, prompt, new, Sampling(top_p=0.95)))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in replicas.generate(engines, _dealt(requests)):
        pass
    _print(engines, time.perf_counter() - wall, time.process_time() - cpu)


def bandwidth(sizes: list[int], steps: int) -> None:
    """Decoding with full slots, beside what reading the weights and the cache once a token would take.

    The bound counts every matrix once a step, and the keys and values that the slots hold; of the embedding the rows
    that are looked up are as good as nothing. Two bandwidths: that of going over an array in the same run, bytes read
    and written, and that of the datasheet.
    """
    device = jax.devices()[0]
    mesh = build_mesh(MeshShape(1, 1, 1), [device])
    cast = jax.jit(lambda tree: to_compute_dtype(THREE_BILLION, tree), donate_argnums=0)
    parameters = jax.eval_shape(cast, abstract(THREE_BILLION, PAPER_VOCABULARY, mesh))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters))
    weights -= parameters["embedding"].size * parameters["embedding"].dtype.itemsize
    token_bytes = 2 * THREE_BILLION.layers * THREE_BILLION.kv_heads * THREE_BILLION.head_dim * 2
    copied, datasheet = _copy_rate(), DATASHEET.get(device.device_kind)
    for slots in sizes:
        started = time.perf_counter()
        engine = Engine(
            *(
                THREE_BILLION,
                cast(initialize(THREE_BILLION, PAPER_VOCABULARY, 0, mesh)),
                TextTokenizer(PAPER_VOCABULARY, -1, -1, None),
            ),  # type: ignore[arg-type]
            **{"context": 2048, "mesh": mesh, "slots": slots, "decode_steps": steps, "seed": 0, "circles": False},
            cache_tokens=slots * 1792,
            name="random weights",
        )
        compiled = time.perf_counter() - started
        random = np.random.default_rng(0)
        lengths = random.integers(512, 1537, slots)
        prompts = [random.integers(1, PAPER_VOCABULARY, length).astype(np.int32) for length in lengths]
        calls = 12
        taken = [
            (n, Request(n, n, 0, prompt, steps * (calls + 4), Sampling(top_p=0.95))) for n, prompt in enumerate(prompts)
        ]
        for slot, request in taken:
            assert engine._table.cover(slot, len(request.prompt) + request.limit)
        engine._fill(taken[:2])  # whose first call is not like the others
        jax.block_until_ready(engine._caches)
        began = time.perf_counter()
        engine._fill(taken)
        jax.block_until_ready(engine._caches)
        reading = time.perf_counter() - began
        jax.block_until_ready(engine._call(taken, []))
        jax.block_until_ready(engine._call([], []))
        began = time.perf_counter()
        for _ in range(calls):
            outputs = engine._call([], [])
        found = jax.device_get(outputs)
        step = (time.perf_counter() - began) / (calls * steps)
        assert int(found.steps) == steps and np.all(found.counts == steps)
        held = float(lengths.sum() + slots * steps * (2 + calls / 2))
        moved = weights + held * token_bytes
        line = {
            "device": device.device_kind,
            "slots": slots,
            "step_milliseconds": 1e3 * step,
            "of_copy": moved / copied / step,
            "of_datasheet": datasheet and moved / datasheet / step,
            "decode_tokens_per_second": slots / step,
            "prompt_tokens_per_second": int(lengths.sum()) / reading,
            "compile_seconds": compiled,
            "copy_gigabytes_per_second": copied / 1e9,
            "weights_gigabytes": weights / 1e9,
            "cache_gigabytes": held * token_bytes / 1e9,
            "peak_gigabytes": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9,
        }
        print(json.dumps(line), flush=True)
        del engine


def _copy_rate() -> float:
    """Bytes a second that the device reads and writes while it goes over a large array, again and again."""
    array, turns = jax.numpy.ones(1 << 30, jax.numpy.bfloat16), 20
    over = jax.jit(lambda x: jax.lax.fori_loop(0, turns, lambda _, x: x + 1, x), donate_argnums=0)
    array = jax.block_until_ready(over(array))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        array = jax.block_until_ready(over(array))
        times.append(time.perf_counter() - began)
    return 2 * array.nbytes * turns / min(times)


def _dealt(requests: list[Request]) -> list[list[Request]]:
    """Requests in pieces of 32, as copies of a model take them; neighbours go to different copies."""
    pieces = max(2, len(requests) // 32)
    return [requests[start::pieces] for start in range(pieces)]


def _engines(options: argparse.Namespace, context: int) -> list[Engine]:
    """As `generation/start.py` makes them, but for texts that never end before their limit."""
    folder = epath.Path(options.folder)
    checkpoint = huggingface.inspect(folder)
    model = replace(checkpoint.model, dtype=options.dtype)
    meshes = replicas.meshes(MeshShape())
    target = to_compute_dtype(model, abstract(model, checkpoint.vocabulary, meshes[0]))
    return [
        Engine(
            model,
            huggingface.load(folder, model, checkpoint.vocabulary, mesh, target),
            TextTokenizer(checkpoint.vocabulary, -1, -1, None),  # type: ignore[arg-type]  # no text, and no end
            context=context,
            mesh=mesh,
            slots=options.slots[0] // len(meshes),
            decode_steps=options.steps,
            seed=0,
            circles=False,
            name=str(folder),
        )
        for mesh in meshes
    ]


def _print(engines: list[Engine], seconds: float, cpu_seconds: float) -> None:
    done = [engine.work for engine in engines]
    generated = sum(work.generated for work in done)
    line: dict[str, Any] = {
        "tokens_per_second": generated / seconds,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": generated,
        "occupancy": generated / sum(work.slot_steps for work in done),
        "host": max(1 - work.waiting_seconds / work.seconds for work in done),
        "prompt_tokens": sum(work.prompt_tokens for work in done),
        "read_tokens": sum(work.read_tokens for work in done),
        "versions": stopwatch.versions(("jax", "sbp_jax")),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
