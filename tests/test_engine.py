"""The batching engine against naive decoding, and against itself in another order."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.config import MeshShape, Model, Synthesis
from sbp_jax.errors import SbpError
from sbp_jax.generation.engine import Completion, Engine, Request
from sbp_jax.generation.sampling import row_keys, sample
from sbp_jax.model.decoder import empty_cache
from sbp_jax.model.parameters import Parameters, bind, initialize
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text.tokenizer import TextTokenizer

CONFIG = Model(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
TOKENS, END, SEPARATOR = 120, 0, 1  # the table has 128 rows
CONTEXT = 160  # three cache blocks, the last of them partly used
TOKENIZER = TextTokenizer(TOKENS, END, SEPARATOR, None)  # type: ignore[arg-type]  # the engine needs no text


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    """Random weights, larger than at initialization so that choices depend on the context, ends now and then."""
    drawn = jax.device_get(initialize(CONFIG, TOKENS, 0, build_mesh(MeshShape())))
    scaled: Parameters = jax.tree.map(lambda array: array if np.all(array == 1) else array * 8, drawn)
    return scaled


def _engine(parameters: Parameters, synthesis: Synthesis, mesh: MeshShape | None = None, slots: int = 16) -> Engine:
    mesh_shape = MeshShape() if mesh is None else mesh
    shape = {"context": CONTEXT, "mesh": build_mesh(mesh_shape), "slots": slots, "decode_steps": 5}
    return Engine(CONFIG, parameters, TOKENIZER, synthesis, name="weights", **shape)  # type: ignore[arg-type]


def _requests(count: int) -> list[Request]:
    random = np.random.default_rng(0)
    lengths = [2, 64, 65, 66, 128, 129, 130, *random.integers(3, 120, count)][:count]
    prompts = [
        np.concatenate([[END], random.integers(2, TOKENS, n - 2), [SEPARATOR]]).astype(np.int32) for n in lengths
    ]
    return [
        Request(i, 2**33 + i // 2, i % 2, prompt, min(40, CONTEXT - len(prompt))) for i, prompt in enumerate(prompts)
    ]


def _naive(parameters: Parameters, requests: list[Request], synthesis: Synthesis) -> list[Completion]:
    """Decodes by a full forward pass for each token."""
    valid = jnp.asarray((np.arange(128) < TOKENS) & (np.arange(128) != SEPARATOR))
    origins = [[request.ordinal & 0xFFFFFFFF, request.ordinal >> 32, request.sample] for request in requests]
    keys = row_keys(synthesis.seed, jnp.array(origins, jnp.uint32))

    @jax.jit
    def step(parameters: Parameters, sequences: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        positions = jnp.broadcast_to(jnp.arange(CONTEXT), sequences.shape)
        logits = bind(CONFIG, TOKENS, parameters)(sequences, jnp.ones_like(sequences), positions)
        last = jnp.take_along_axis(logits, lengths[:, None, None] - 1, axis=1)[:, 0]
        step_keys = jax.vmap(jax.random.fold_in)(keys, lengths)
        return sample(last, step_keys, valid, synthesis.temperature, synthesis.top_p)[:2]

    sequences = np.stack([np.pad(request.prompt, (0, CONTEXT - len(request.prompt))) for request in requests])
    lengths = np.array([len(request.prompt) for request in requests])
    ends, totals = lengths + [request.limit for request in requests], np.zeros(len(requests))
    finishes = ["" for _ in requests]
    while not all(finishes):
        tokens, logprobs = jax.device_get(step(parameters, sequences, lengths))
        for row in (row for row, finish in enumerate(finishes) if not finish):
            totals[row] += logprobs[row]
            if tokens[row] == END:
                finishes[row] = "end"
                continue
            sequences[row, lengths[row]] = tokens[row]
            lengths[row] += 1
            finishes[row] = "length" if lengths[row] == ends[row] else ""
    texts = [sequences[row, len(request.prompt) : lengths[row]] for row, request in enumerate(requests)]
    return [Completion(*values) for values in zip(requests, texts, finishes, totals.tolist(), strict=True)]


@pytest.mark.parametrize("synthesis", [Synthesis(temperature=0.0), Synthesis(temperature=1.0, top_p=0.8)])
def test_engine_equals_naive_decoding(parameters: Parameters, synthesis: Synthesis) -> None:
    """Guards the cache: positions, masks, prompts at block borders, tokens moved between calls, slots reused."""
    completions = sorted(_engine(parameters, synthesis).generate(_requests(24)), key=lambda done: done.request.number)
    for completion, expected in zip(completions, _naive(parameters, _requests(24), synthesis), strict=True):
        np.testing.assert_array_equal(completion.tokens, expected.tokens)
        assert completion.finish == expected.finish
        np.testing.assert_allclose(completion.logprob, expected.logprob, rtol=1e-4, atol=1e-4)
    assert {completion.finish for completion in completions} == {"end", "length"}


def test_tokens_do_not_depend_on_batch_mates_order_or_restarts_and_nothing_recompiles(parameters: Parameters) -> None:
    engine = _engine(parameters, Synthesis(top_p=0.95))
    requests = _requests(40)

    def run(some: list[Request]) -> dict[int, tuple]:
        return {c.request.number: (c.tokens.tolist(), c.finish, c.logprob) for c in engine.generate(some)}

    everything = run(requests)
    assert run(requests[::-1]) == everything
    assert run(requests[5:8]) == {number: everything[number] for number in (5, 6, 7)}
    for compiled in (engine._decode, engine._prefill):
        assert compiled._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("mesh", [MeshShape(2, 2, 2), MeshShape(8, 1, 1)])
def test_a_mesh_changes_nothing_beyond_rounding(parameters: Parameters, mesh: MeshShape) -> None:
    """Guards against slots that read another device's rows of the cache."""
    synthesis = Synthesis(temperature=0.0)
    expected = _naive(parameters, _requests(12), synthesis)
    for completion in _engine(parameters, synthesis, mesh).generate(_requests(12)):
        np.testing.assert_array_equal(completion.tokens, expected[completion.request.number].tokens)


def test_extending_by_pieces_equals_the_whole_in_bfloat16(parameters: Parameters) -> None:
    """Guards against a cache that keeps another precision than the uncached pass uses."""
    config = replace(CONFIG, dtype="bfloat16")
    model = bind(config, TOKENS, jax.tree.map(jnp.asarray, parameters))
    tokens = jnp.asarray(np.random.default_rng(0).integers(2, TOKENS, (3, 20)))
    positions = jnp.broadcast_to(jnp.arange(20), (3, 20))
    whole = model(tokens, jnp.ones_like(tokens), positions)
    past, nothing = empty_cache(config, 3, 1, 20), jnp.zeros(3, jnp.int32)
    extend = jax.jit(model.extend)
    first, recent = extend(tokens[:, :13], positions[:, :13], past, nothing, 0, past, 0)
    second, _ = extend(tokens[:, 13:], positions[:, 13:], past, nothing, 0, recent, 13)
    np.testing.assert_allclose(
        model.logits(jnp.concatenate([first, second], 1)), whole, atol=0.15 * float(jnp.std(whole))
    )


def test_weights_that_give_no_numbers_are_an_error_that_names_them(parameters: Parameters) -> None:
    broken = parameters | {"final_norm": np.full_like(parameters["final_norm"], np.nan)}
    with pytest.raises(SbpError, match="weights gives logits that are no finite numbers for seed document"):
        list(_engine(broken, Synthesis()).generate(_requests(3)))


def test_no_requests_give_no_completions(parameters: Parameters) -> None:
    assert list(_engine(parameters, Synthesis()).generate([])) == []
