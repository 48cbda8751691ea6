"""Generation: the batching engine against decoding without a cache, the same requests, the same greedy text.

    python benchmarks/synthesis.py [--requests 64 --new 64]

The figure to compare is the ratio of their tokens/s; the texts are checked to be equal.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from sbp_jax.config import Execution, MeshShape, Model, Synthesis
from sbp_jax.generation.engine import Engine, Request
from sbp_jax.model.parameters import bind, initialize
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text.tokenizer import TextTokenizer

MODEL, VOCABULARY, CONTEXT = Model(layers=2), 2048, 512
END, SEPARATOR = 0, 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    mesh = build_mesh(MeshShape())
    parameters = initialize(MODEL, VOCABULARY, 0, mesh)
    random = np.random.default_rng(0)
    lengths = random.integers(32, 256, options.requests)
    prompts = [random.integers(2, VOCABULARY, length).astype(np.int32) for length in lengths]
    requests = [Request(number, number, 0, prompt, options.new) for number, prompt in enumerate(prompts)]

    engine = Engine(
        MODEL,
        jax.device_get(parameters),
        TextTokenizer(VOCABULARY, END, SEPARATOR, None),
        Synthesis(temperature=0.0),
        context=CONTEXT,
        mesh=mesh,
        slots=Execution().slots,
        decode_steps=Execution().decode_steps,
        name="random weights",
    )
    list(engine.generate(requests[:1]))  # compiles
    start = time.perf_counter()
    texts = {completion.request.number: list(completion.tokens) for completion in engine.generate(requests)}
    engine_seconds = time.perf_counter() - start

    @jax.jit
    def next_token(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        segments, positions = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        logits = bind(MODEL, VOCABULARY, parameters)(tokens, segments, positions)
        last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return jnp.argmax(last.at[:, SEPARATOR].set(-jnp.inf), axis=-1)

    padded = np.zeros((options.requests, 256 + options.new), np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    next_token(padded, lengths).block_until_ready()  # compiles
    start = time.perf_counter()
    ends = lengths.copy()
    for _ in range(options.new):
        padded[np.arange(options.requests), ends] = np.asarray(next_token(padded, ends))
        ends += 1
    naive_seconds = time.perf_counter() - start

    total = sum(len(text) for text in texts.values())
    for number, text in texts.items():
        naive = padded[number, lengths[number] : lengths[number] + len(text)].tolist()
        assert naive == text, f"request {number}: {naive} is not {text}"
    naive_rate, engine_rate = options.requests * options.new / naive_seconds, total / engine_seconds
    print(f"engine        {engine_rate:>10,.0f} tokens/s")
    print(f"no cache      {naive_rate:>10,.0f} tokens/s")
    print(f"ratio         {engine_rate / naive_rate:>10.1f}")


if __name__ == "__main__":
    main()
