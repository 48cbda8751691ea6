"""Plans for generating on TPUs that are not there: arithmetic, the engine's programs compiled, the search, refusals."""

import importlib.util
import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from docs import generate_plan_tables
from sbp_jax import cli
from sbp_jax.config import Execution, MeshShape, Model
from sbp_jax.experiments import load
from sbp_jax.generation.engine import Engine
from sbp_jax.generation.requests import Request
from sbp_jax.model.incremental import empty_caches
from sbp_jax.model.parameters import initialize
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.planning import bandwidth, generate, generate_report, hlo
from sbp_jax.planning.bandwidth import Documents
from sbp_jax.planning.generate import Asked, Attempt, guess, search
from sbp_jax.planning.topology import CHIPS, GIB, Topology
from sbp_jax.text.tokenizer import TextTokenizer
from sbp_jax.training.flops import flops_per_token, peak_flops

CONFIG = "configs/quickstart.py"
TOY = Model(width=256, layers=2, heads=4, kv_heads=2, head_dim=128, ffn=512, dtype="bfloat16", tied_embeddings=False)
SETTINGS = [
    f"--set=model.{name}={getattr(TOY, name)}"
    for name in ("width", "layers", "heads", "kv_heads", "head_dim", "ffn", "dtype", "tied_embeddings")
]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def _chips(name: str) -> Topology:
    """A topology without devices, for arithmetic."""
    chip = CHIPS[name]
    return Topology(name, 1, 1, (), chip, peak_flops(chip.kind) or 0)


def test_the_arithmetic_of_the_3b_model_by_hand() -> None:
    """Guards every factor of the bounds: numbers worked out from the published shapes, not from the code."""
    model = load("configs/paper_200b_3b.py", []).model
    attention = 3072 * 3072 + 2 * 3072 * 1024 + 3072 * 3072  # query, key and value, output
    matrices = 26 * (attention + 3 * 3072 * 8064) + 3072 * 49_152
    made = bandwidth.speed(model, 49_152, Documents(1000, 200), 500, 1, _chips("v5p"))
    assert made["weight_bytes"] == 2 * matrices
    assert made["position_bytes"] == 26 * 2 * 1024 * 2  # keys and values of 8 heads of 128 in two bytes
    assert made["held"] == 1100 and made["cache_bytes"] == 500 * 1100 * 106_496
    seconds = (2 * matrices + 500 * 1100 * 106_496) / 2765e9
    assert made["step_seconds"] == pytest.approx(seconds) and made["tokens_a_second_a_chip"] == pytest.approx(
        500 / seconds
    )
    flops = 2 * matrices + 2 * 2 * 26 * 3072 * 1100  # scores and weighted values over 24 heads of 128
    assert made["products_tokens_a_second_a_chip"] == pytest.approx(459e12 / flops)
    assert made["bound_tokens_a_second_a_chip"] == made["tokens_a_second_a_chip"]
    cost = bandwidth.cost(model, Documents(1000, 200), 1e9, made, _chips("v5p"), 0.5, 0.25)
    assert cost["decoding_chip_hours"] == pytest.approx(2 * 1e9 / (500 / seconds) / 3600)
    prompts = 5e9 * (2 * (matrices - 3072 * 49_152) + 2 * 26 * 3072 * 1000)  # five tokens of prompts for each new one
    assert cost["prompt_tokens"] == 5e9 and cost["prompts_chip_hours"] == pytest.approx(4 * prompts / 459e12 / 3600)
    assert cost["chip_hours"] == pytest.approx(cost["decoding_chip_hours"] + cost["prompts_chip_hours"])


def test_bytes_and_operations_agree_with_arrays_and_with_training() -> None:
    caches = jax.eval_shape(lambda: empty_caches(TOY, 3, 128))
    assert bandwidth.position_bytes(TOY) * 3 * 128 == sum(leaf.size * 2 for leaf in jax.tree.leaves(caches))
    # A forward pass over T positions holds T / 2 on average, and costs a third of training.
    assert bandwidth.token_flops(TOY, 512, 300 / 2) == flops_per_token(TOY, 512, 300) / 3


def test_a_copy_on_several_devices_reads_its_parts_and_counts_all_its_chips() -> None:
    one, four = (bandwidth.speed(TOY, 512, Documents(100, 100), 64, devices, _chips("v6e")) for devices in (1, 4))
    assert four["step_bytes"] == one["step_bytes"] / 4 and four["step_seconds"] == one["step_seconds"] / 4
    assert four["tokens_a_second_a_chip"] == pytest.approx(one["tokens_a_second_a_chip"])
    halves = bandwidth.speed(TOY, 512, Documents(100, 100), 64, 2, _chips("tpu7x"))  # two devices are one chip
    assert halves["tokens_a_second_a_chip"] == pytest.approx(64 / halves["step_seconds"])


def test_where_products_take_longer_they_are_the_bound() -> None:
    made = bandwidth.speed(replace(TOY, kv_heads=1), 512, Documents(1, 1), 10**5, 1, _chips("v5e"))
    assert made["products_seconds"] > made["step_seconds"]
    assert made["bound_tokens_a_second_a_chip"] == made["products_tokens_a_second_a_chip"]


def test_the_planner_compiles_for_what_the_engine_gives() -> None:
    """Guards the abstract arguments: an array of another shape, type or place would compile another program."""
    mesh = build_mesh(MeshShape(1, 1, 2), jax.devices()[:2])
    tokenizer = TextTokenizer(500, 0, 1, None)  # type: ignore[arg-type]  # no text
    weights = jax.device_get(initialize(TOY, 500, 0, mesh))
    shape = {"context": 100, "mesh": mesh, "slots": 8, "decode_steps": 4, "seed": 0}
    engine = Engine(TOY, weights, tokenizer, name="weights", **shape)  # type: ignore[arg-type]
    made, given = engine._programs, {}

    def noting(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            given[name] = jax.tree.map(lambda leaf: (np.shape(leaf), leaf.dtype), arguments)
            placed[name] = [leaf.sharding for leaf in jax.tree.leaves(arguments) if isinstance(leaf, jax.Array)]
            return getattr(made, name)(*arguments)

        return call

    placed: dict[str, Any] = {}
    engine._programs = replace(made, read=noting("read"), decode=noting("decode"))
    assert len(list(engine.generate([Request(0, 0, 0, np.arange(2, 50, dtype=np.int32), 8)]))) == 1
    for name, arguments in (
        ("read", (made.parameters, made.caches, *made.read_arguments)),
        ("decode", (made.parameters, made.caches, made.slots, *made.decode_arguments)),
    ):
        assert given[name] == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), arguments)
        on_devices = zip(jax.tree.leaves(arguments), placed[name], strict=False)  # the host's arrays come last
        assert all(leaf.sharding.is_equivalent_to(found, leaf.ndim) for leaf, found in on_devices)


def _plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["plan", "generate", CONFIG, *SETTINGS, *arguments])
    return status, *capsys.readouterr()


TWO = ("--topology", "v5e:2x2", "--tensor", "2", "--slots", "16", "--prompt-tokens", "100", "--new-tokens", "60")


@needs_libtpu
def test_a_toy_compiled_for_two_of_four_chips(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory against the arrays, traffic between the two, the text against the JSON, and no copy of the cache."""
    status, out, err = _plan(capsys, *TWO, "--tokens", "1e6", "--utilisation", "0.5", "--json")
    assert status == 0, err
    made = json.loads(out)
    chosen, speed = made["chosen"], made["chosen"]["speed"]
    assert chosen["mesh"] == {"data": 1, "fsdp": 1, "tensor": 2} and chosen["copies"] == 2
    matrices = 2 * (2 * 256 * 4 * 128 + 2 * 256 * 2 * 128 + 3 * 256 * 512) + 2 * 2048 * 256
    norms = (2 * 2 + 1) * 256 + 2 * 2 * 128
    assert chosen["weights"] == 2 * matrices / 2 + 4 * norms
    held = 100 + 30 + 16 + 64  # the prompt, half of what is new, a call's tokens, half of a page
    pages = -(-int(16 * held * 1.1) // 128)
    assert chosen["cache_tokens"] == pages * 128 and chosen["cache"] == pages * 128 * 2 * 2 * 2 * 128 * 2 / 2
    assert chosen["peak"] > chosen["weights"] + chosen["cache"] + chosen["temporaries"] and chosen["fits"]
    assert chosen["peak"] < 1.2 * (sum(chosen[name] for name in ("weights", "cache", "temporaries", "code")))
    assert chosen["copied_a_step"] == chosen["copied_a_call"] == 0
    assert chosen["traffic"]["all-reduce"]["count"] >= 4  # after attention and feed-forward of each layer
    assert chosen["tokens_in_flight"] == 16 * 130
    assert speed["step_seconds"] == pytest.approx((speed["weight_bytes"] + 16 * 130 * 1024) / 819e9)
    assert chosen["cost"]["decoding_chip_hours"] == pytest.approx(
        1e6 * speed["step_seconds"] * 2 / 16 / 3600 / 0.5  # of two chips
    )
    assert chosen["set"] == [
        "execution.mesh.tensor=2",
        "execution.slots=16",
        f"execution.cache_tokens={chosen['cache_tokens']}",
    ]
    lines = generate_report.text(made).splitlines()
    assert max(map(len, lines)) <= 130 and lines[-1].endswith(chosen["set"][-1])
    step = next(line for line in lines if line.startswith("  a step"))
    assert f"{speed['step_seconds'] * 1e3:,.2f} ms" in step and "819 GB/s" in step


def _asked(**execution: Any) -> Asked:
    model, topology = load("configs/paper_200b_3b.py", []).model, _chips("v5p")
    return Asked(model, 49_152, Documents(828, 828), 8192, topology, MeshShape(1, 1, 1), Execution(**execution))


def _attempt(asked: Asked, slots: int, needed: float) -> Attempt:
    cache = asked.cache_tokens(slots)
    return Attempt(slots, cache, 5 << 30, 0, 0, 1 << 29, int(needed), int(needed), 0, 0, {}, 1.0)


@pytest.mark.parametrize("each", [40e6, 150e6, 2e9])
def test_the_search_fills_the_memory_with_few_compilations(each: float) -> None:
    """Guards against slots left unused, or past the memory, where a first guess is far off."""
    asked = _asked()
    found, tried = search(asked, None, lambda slots: _attempt(asked, slots, 7e9 + each * slots))
    assert found is not None and len(tried) <= generate.MOST_COMPILED
    limit = 0.95 * 95.74 * GIB
    assert found.needed <= limit < max(found.needed / 0.93, found.needed + generate.MULTIPLE * each)


def test_slots_that_are_asked_for_are_compiled_once_whether_they_fit_or_not() -> None:
    asked = _asked()
    found, tried = search(asked, 100, lambda slots: _attempt(asked, slots, 96 * GIB))
    assert found is None and [made.slots for made in tried] == [100]
    found, tried = search(asked, 100, lambda slots: _attempt(asked, slots, 95 * GIB))
    assert found is tried[0]
    asked = _asked(cache_tokens=128_000)
    found, tried = search(asked, None, lambda slots: _attempt(asked, slots, GIB))
    assert found is not None and found.cache_tokens == 128_000 and len(tried) == 1
    assert found.slots * asked.covered() == pytest.approx(128_000 / 1.1, rel=0.01)


def test_a_model_larger_than_a_chip_has_no_slots() -> None:
    large = replace(_asked(), model=replace(TOY, layers=4000, width=4096, ffn=16384))
    assert guess(large) == 0 and search(large, None, lambda slots: _attempt(large, slots, 1)) == (None, [])


def test_pages_are_no_more_than_the_context_of_all_slots() -> None:
    short = replace(_asked(), context=1664, documents=Documents(1600, 64))
    assert short.cache_tokens(10) == 10 * 13 * 128 and _asked().cache_tokens(1) == 64 * 128
    assert _asked(cache_tokens=1000).cache_tokens(10) == 64 * 128  # one slot must be able to grow to the context


def test_copies_of_an_array_are_told_from_what_else_moves() -> None:
    """Guards the number that says whether the compiled program copies the cache: by shape, in loops and outside."""
    text = """
%body (state: (s32[], bf16[4,2])) -> (s32[], bf16[4,2]) {
  %state = (s32[], bf16[4,2]{1,0}) parameter(0)
  %cache = bf16[4,2]{1,0} get-tuple-element(%state), index=1
  %copy.1 = bf16[4,2]{0,1} copy(%cache)
  %copy.2 = bf16[4,3]{0,1} copy(%other)
  ROOT %next = (s32[], bf16[4,2]{1,0}) tuple(%i, %cache)
}

ENTRY %main (p0: bf16[4,2]) -> bf16[4,2] {
  %p0 = bf16[4,2]{1,0} parameter(0)
  %ahead = (bf16[4,2]{1,0:T(8,128)(2,1)S(1)}, bf16[4,2]{1,0}, u32[]) copy-start(%p0)
  %moved = (bf16[4,2]{1,0:T(8,128)(2,1)}, bf16[4,2]{1,0:S(1)}, u32[]) copy-start(%p0)
  %turned = bf16[4,2]{0,1} transpose(%p0), dimensions={0,1}
  ROOT %while.1 = (s32[], bf16[4,2]{1,0}) while(%begin), condition=%condition, body=%body
}
"""
    assert hlo.copies(text, {(4, 2)}) == (2 * 16, 16)
    assert hlo.copies(text, {(4, 4)}) == (0, 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v9:2x2"], "--topology v9:2x2: expected a kind of chip"),
        (["--topology", "v5e:1x1", "--slots", "0"], "--slots is 0; it must be at least 1"),
        (["--topology", "v5e:1x1", "--tensor", "-1"], "--tensor is -1; it must be at least 1"),
        (["--topology", "v5e:1x1", "--tokens=-1e9"], "--tokens is -1e+09; it must be at least 1"),
        (["--topology", "v5e:1x1", "--tokens", "nan"], "--tokens is nan; it must be at least 1"),
        (["--topology", "v5e:1x1", "--tokens", "inf"], "--tokens is inf; it must be at least 1"),
        (["--topology", "v5e:1x1", "--utilisation", "0"], "--utilisation is 0; it is a fraction"),
        (["--topology", "v5e:1x1", "--prompt-utilisation", "2"], "--prompt-utilisation is 2; it is a fraction"),
        (["--topology", "v5e:1x1", "--prompt-tokens", "512"], "do not fit a context of 512"),
        (["--topology", "v5e:1x1", "--new-tokens", "0"], "prompts of 512 tokens and 0 new ones do not fit"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    status, _, err = _plan(capsys, *arguments)
    assert status == 2 and message in err and "Traceback" not in err


@needs_libtpu
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v5e:3x5"], "--topology v5e:3x5: libtpu refuses it"),
        (["--topology", "v5e:1x1", "--tensor", "2"], "does not fit the 1 devices of v5e:1x1"),
        (["--topology", "v5e:2x2", "--tensor", "3"], "tensor 3 does not divide 4 heads"),
        (
            ["--topology", "v5e:1x1", "--set=model.layers=20000"],
            "nothing that was compiled fits v5e:1x1; cut the model",
        ),
    ],
)
def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    status, _, err = _plan(capsys, *arguments)
    assert status == 2 and message in err and "Traceback" not in err


def test_the_table_of_the_page_has_the_arithmetic_of_the_planner() -> None:
    """Guards against a page that tells what an older planner said; what the compiler said is not compiled again."""
    lines = generate_plan_tables.PAGE.read_text().split(generate_plan_tables.HEAD)[1].strip().split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()[1:]]
    assert [cells[0] for cells in rows] == list(generate_plan_tables.TOPOLOGIES)
    model = load(str(generate_plan_tables.ROOT / generate_plan_tables.CONFIG), []).model
    for cells in rows:
        topology, slots = _chips(cells[0].partition(":")[0]), int(cells[1].replace(",", ""))
        documents = Documents(generate.DOCUMENT, generate.DOCUMENT)
        speed = bandwidth.speed(model, 49_152, documents, slots, 1, topology)
        cost = bandwidth.cost(model, documents, 100e9, speed, topology, 0.6, 0.4)
        assert cells[7].endswith(f"= {speed['step_seconds'] * 1e3:.2f} ms")
        assert cells[8] == f"{speed['bound_tokens_a_second_a_chip']:,.0f}"
        assert cells[9] == f"{speed['products_tokens_a_second_a_chip']:,.0f}"
        assert cells[12] == f"{cost['chip_hours']:,.0f}"
        assert float(cells[2]) + float(cells[3]) < float(cells[5].partition(" ")[0]) <= 0.95 * topology.chip.memory_gib
