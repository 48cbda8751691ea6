"""The batching engine against naive decoding, and against itself in another order."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.config import MeshShape, Model
from sbp_jax.errors import SbpError
from sbp_jax.generation.engine import Engine
from sbp_jax.generation.loops import loop_end
from sbp_jax.generation.requests import Completion, Request, Sampling
from sbp_jax.generation.sampling import row_keys, sample
from sbp_jax.model import cached_attention, decode_kernel, incremental
from sbp_jax.model.parameters import Parameters, bind, initialize
from sbp_jax.parallel.mesh import AXES, build_mesh
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


GREEDY, NUCLEUS = Sampling(temperature=0.0), Sampling(top_p=0.8)
SEED = 3


def _engine(parameters: Parameters, mesh: MeshShape | None = None, slots: int = 16, **more: object) -> Engine:
    devices = build_mesh(MeshShape(), jax.devices()[:1]) if mesh is None else build_mesh(mesh)
    shape = {"context": CONTEXT, "mesh": devices, "slots": slots, "decode_steps": 5, "seed": SEED}
    return Engine(CONFIG, parameters, TOKENIZER, name="weights", **shape, **more)  # type: ignore[arg-type]


def _requests(count: int, *sampling: Sampling) -> list[Request]:
    random = np.random.default_rng(0)
    lengths = [2, 64, 65, 66, 128, 129, 130, 1, *random.integers(3, 120, count)][:count]
    prompts = [
        np.concatenate([[END], random.integers(2, TOKENS, n - 2), [SEPARATOR]]).astype(np.int32)
        if n > 1
        else np.array([END], np.int32)
        for n in lengths
    ]
    return [
        Request(i, 2**33 + i // 2 if i % 5 else -1 - i, i % 2, prompt, min(40, CONTEXT - len(prompt)), chosen)
        for i, prompt in enumerate(prompts)
        for chosen in [sampling[i % len(sampling)]]
    ]


def _naive(parameters: Parameters, requests: list[Request]) -> list[Completion]:
    """Decodes by a full forward pass for each token."""
    valid = jnp.asarray((np.arange(128) < TOKENS) & (np.arange(128) != SEPARATOR))
    origins = [[r.ordinal & 0xFFFFFFFF, r.ordinal >> 32 & 0xFFFFFFFF, r.sample] for r in requests]
    keys = row_keys(SEED, jnp.array(origins, jnp.uint32))
    limits = [jnp.array([getattr(r.sampling, name) for r in requests]) for name in ("temperature", "top_p", "top_k")]

    @jax.jit
    def step(parameters: Parameters, sequences: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        positions = jnp.broadcast_to(jnp.arange(CONTEXT), sequences.shape)
        logits = bind(CONFIG, TOKENS, parameters)(sequences, jnp.ones_like(sequences), positions)
        last = jnp.take_along_axis(logits, lengths[:, None, None] - 1, axis=1)[:, 0]
        step_keys = jax.vmap(jax.random.fold_in)(keys, lengths)
        return sample(last, step_keys, valid, *limits)[:2]

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


def _compare(completions: list[Completion], expected: list[Completion]) -> None:
    for completion, wanted in zip(sorted(completions, key=lambda done: done.request.number), expected, strict=True):
        np.testing.assert_array_equal(completion.tokens, wanted.tokens)
        assert completion.finish == wanted.finish
        np.testing.assert_allclose(completion.logprob, wanted.logprob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", [(GREEDY,), (NUCLEUS,), (GREEDY, NUCLEUS, Sampling(0.7, 1.0, 5))])
def test_engine_equals_naive_decoding(parameters: Parameters, sampling: tuple[Sampling, ...]) -> None:
    """Guards the cache: positions, masks, prompts at block borders, tokens moved between calls, slots reused."""
    requests = _requests(24, *sampling)
    completions = list(_engine(parameters).generate(requests))
    _compare(completions, _naive(parameters, requests))
    assert {completion.finish for completion in completions} == {"end", "length"}


def test_the_kernel_of_gpus_generates_the_same(parameters: Parameters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards its tiles, masks and page numbers; it is interpreted here."""
    monkeypatch.setattr(decode_kernel, "runs", lambda config, platform: True)
    monkeypatch.setattr(decode_kernel, "triton", partial(decode_kernel.triton, interpret=True))
    requests = _requests(12, GREEDY, NUCLEUS)
    _compare(list(_engine(parameters).generate(requests)), _naive(parameters, requests))


def test_the_kernel_is_lowered_for_a_gpu_that_is_not_there() -> None:
    """Guards against operations that the interpreter takes and Triton does not."""

    def attend(query: jax.Array, keys: jax.Array, values: jax.Array, table: jax.Array, lengths: jax.Array) -> tuple:
        held = cached_attention.held(table, lengths, 64, 64)
        return decode_kernel.triton(query, cached_attention.Pages(keys, values), held)

    shapes = ((4, 2, 3, 1, 128), (64, 2, 128, 64), (64, 2, 64, 128))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    numbers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((4, 16), (4,))]
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1, 1, 1), AXES, (jax.sharding.AxisType.Auto,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(attend).trace(*arrays, *numbers).lower(lowering_platforms=("cuda",))
    assert "triton" in lowered.as_text()


def test_tokens_do_not_depend_on_batch_mates_order_or_restarts_and_nothing_recompiles(parameters: Parameters) -> None:
    engine = _engine(parameters)
    requests = _requests(40, Sampling(top_p=0.95), GREEDY)

    def run(some: list[Request]) -> dict[int, tuple]:
        return {c.request.number: (c.tokens.tolist(), c.finish, c.logprob) for c in engine.generate(some)}

    everything = run(requests)
    assert run(requests[::-1]) == everything
    assert run(requests[5:8]) == {number: everything[number] for number in (5, 6, 7)}
    ahead = _engine(parameters, ahead=True)
    engine, behind = ahead, engine
    assert run(requests) == everything
    engine = behind
    given_up = engine.generate(requests[10:])
    next(given_up)
    given_up.close()
    assert run(requests) == everything
    for compiled in (engine._programs.decode, engine._programs.read):
        assert compiled._cache_size() == 1  # type: ignore[attr-defined]


def test_with_few_pages_the_latest_requests_begin_again_and_all_texts_are_the_same(parameters: Parameters) -> None:
    """Guards against pages that two slots hold, or tokens of a request that lost its slot."""
    requests = _requests(40, Sampling(top_p=0.95), GREEDY)
    engine = _engine(parameters, cache_tokens=640, ahead=True)
    alone = [completion for request in requests for completion in engine.generate([request])]
    assert engine.work.put_back == 0
    together = sorted(engine.generate(requests), key=lambda done: done.request.number)
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens.tolist(), one.finish, one.logprob) == (other.tokens.tolist(), other.finish, other.logprob)
    assert engine.work.put_back > 0


@pytest.mark.parametrize("mesh", [MeshShape(2, 2, 2), MeshShape(8, 1, 1)])
def test_a_mesh_changes_nothing_beyond_rounding(parameters: Parameters, mesh: MeshShape) -> None:
    """Guards against slots that read another device's rows of the cache."""
    requests = _requests(12, GREEDY)
    expected = _naive(parameters, requests)
    for completion in _engine(parameters, mesh).generate(requests):
        np.testing.assert_array_equal(completion.tokens, expected[completion.request.number].tokens)


def test_reading_by_pieces_equals_the_whole_in_bfloat16(parameters: Parameters) -> None:
    """Guards against a cache that keeps another precision than the uncached pass uses."""
    config = replace(CONFIG, dtype="bfloat16")
    arrays = jax.tree.map(jnp.asarray, parameters)
    model, layered = bind(config, TOKENS, arrays), incremental.by_layer(arrays)
    tokens = jnp.asarray(np.random.default_rng(0).integers(2, TOKENS, (3, 20)))
    whole = model(tokens, jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(20), (3, 20)))
    caches, table = incremental.empty_caches(config, 3, 32), jnp.array([[2], [0], [1]])
    caches = incremental.read(config, layered, caches, tokens[:, :8], table, jnp.zeros(3, jnp.int32))
    caches = incremental.read(config, layered, caches, tokens[:, 8:16], table, jnp.full(3, 8))
    recent, lengths, found = incremental.empty_caches(config, 3, 4), jnp.full(3, 16), []
    holding = cached_attention.held(table, lengths, 3, 32)
    for step in range(4):
        hidden, recent = incremental.extend(
            config, layered, tokens[:, 16 + step], lengths + step, caches, holding, recent, step, cached_attention.xla
        )
        found.append(incremental.next_logits(config, TOKENS, layered, hidden))
    np.testing.assert_allclose(jnp.stack(found, 1), whole[:, 16:], atol=0.15 * float(jnp.std(whole[..., :TOKENS])))


@pytest.mark.parametrize("steps", [5, 16, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pages_written_whole_are_those_written_by_columns(steps: int, dtype: str) -> None:
    """Guards what a TPU runs: page borders, slots that wrote nothing or have no page, columns that do not count."""
    config, random = replace(CONFIG, dtype=dtype), np.random.default_rng(0)
    slots, positions, pages = 9, 16, 30
    lengths = np.array([0, 5, 15, 16, 17, 31, 3, 0, 12])
    counts = np.array([steps, steps, 1, steps, steps - 1, 2, 0, 0, steps])
    table = np.full((slots, 6), pages, np.int32)
    free = iter(random.permutation(pages))
    for slot in range(slots - 2):  # the last two slots are idle, of which one says that it wrote something
        needed = -(-(lengths[slot] + counts[slot]) // positions)
        table[slot, :needed] = [next(free) for _ in range(needed)]

    def filled(count: int, columns: int) -> incremental.Caches:
        empty = incremental.empty_caches(config, count, columns)
        return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), empty)

    past, recent = filled(pages, positions), filled(slots, steps)
    holding = cached_attention.held(jnp.asarray(table), jnp.asarray(lengths), pages, positions)
    unused = recent[0].keys.at[2, ..., 1:].set(jnp.nan)  # of slot 2 one column counts
    recent = (recent[0]._replace(keys=unused), *recent[1:])
    both = (incremental.settle, incremental.settle_by_page)
    ways = [jax.jit(settle)(past, recent, holding, jnp.asarray(counts)) for settle in both]
    for columns, whole in zip(*map(jax.tree.leaves, ways), strict=True):
        np.testing.assert_array_equal(columns, whole)


def test_a_circle_is_found_when_it_closes_and_what_only_repeats_a_while_is_not(parameters: Parameters) -> None:
    """Guards periods, copies and the least length of circles against the rule on whole texts."""
    flat = jax.tree.map(lambda array: array if np.all(array == 1) else array / 8, parameters)
    requests = [replace(request, limit=110) for request in _requests(24, GREEDY) if len(request.prompt) < 40]
    completions = list(_engine(flat).generate(requests))
    for completion in completions:
        end = loop_end(completion.tokens)
        assert (completion.finish == "loop") == (end is not None)
        assert end is None or end == len(completion.tokens)
    assert {"loop"} <= {completion.finish for completion in completions}


def test_slots_are_busy_and_the_host_is_not(parameters: Parameters) -> None:
    """Guards the accounts that benchmarks print, and slots that are not filled again."""
    engine = _engine(parameters, cache_tokens=16 * CONTEXT)
    requests = [replace(request, limit=30) for request in _requests(100, Sampling(top_p=0.95))]
    completions = list(engine.generate(requests))
    generated = sum(len(done.tokens) + (done.finish == "end") for done in completions)
    assert engine.work.generated == generated
    assert engine.work.prompt_tokens == sum(len(request.prompt) - 1 for request in requests)
    assert 0.5 < engine.work.occupancy <= 1


def test_weights_that_give_no_numbers_are_an_error_that_names_them(parameters: Parameters) -> None:
    broken = parameters | {"final_norm": np.full_like(parameters["final_norm"], np.nan)}
    with pytest.raises(SbpError, match="weights gives logits that are no finite numbers for seed document"):
        list(_engine(broken).generate(_requests(3, NUCLEUS)))


@pytest.mark.parametrize(("length", "limit"), [(0, 5), (CONTEXT, 1), (5, 0), (5, CONTEXT - 4)])
def test_a_prompt_that_leaves_no_room_is_an_error(parameters: Parameters, length: int, limit: int) -> None:
    request = Request(0, 7, 0, np.full(length, 5, np.int32), limit, GREEDY)
    with pytest.raises(SbpError, match=f"seed document 7 has a prompt of {length} tokens"):
        list(_engine(parameters).generate([request]))


def test_no_requests_give_no_completions(parameters: Parameters) -> None:
    assert list(_engine(parameters).generate([])) == []


@pytest.mark.parametrize("ahead", [False, True])
def test_a_request_that_has_enough_ends_and_leaves_nothing_behind(parameters, ahead):
    """Guards a stopped text that is changed or goes on, and a slot that writes for nobody or into others' pages."""
    engine, requests = _engine(parameters, slots=4, ahead=ahead), _requests(9, GREEDY)
    whole = {done.request.number: done for done in engine.generate(requests)}
    stopping = [replace(request, stop=lambda tokens: len(tokens) >= 7) for request in requests]
    for done in engine.generate(stopping):
        other = whole[done.request.number]
        assert done.tokens.tolist() == other.tokens[: len(done.tokens)].tolist()
        assert len(done.tokens) == len(other.tokens) or (done.finish == "stop" and 7 <= len(done.tokens) <= 10)
    assert sum(len(done.tokens) > 10 for done in whole.values()) > 4, "too few that could be stopped"
    assert not np.any(jax.device_get(engine._slots.rows.remaining))
    again = {done.request.number: done.tokens.tolist() for done in engine.generate(requests)}
    assert again == {number: done.tokens.tolist() for number, done in whole.items()}
