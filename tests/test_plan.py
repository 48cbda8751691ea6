"""Plans for TPUs that are not there: HLO read right, memory and traffic of a compiled toy, the search, refusals."""

import importlib.util
import json
from dataclasses import replace

import pytest

from sbp_jax import cli
from sbp_jax.config import Execution, MeshShape, Model, Optimization
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.planning.compile import Compiled, Memory, compile_step
from sbp_jax.planning.hlo import Traffic, array_bytes, collectives, group_size, parse, trip_count
from sbp_jax.planning.search import Layout, Problem, layouts, search
from sbp_jax.planning.topology import get_topology
from sbp_jax.training.step import Setup

CONFIG = "configs/quickstart.py"
TOY = Model(width=128, layers=2, heads=4, kv_heads=2, head_dim=64, ffn=256, dtype="bfloat16", tied_embeddings=False)
ROWS = Optimization(context=256, batch_rows=8)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

HLO = """HloModule step, is_scheduled=true

%all-reduce-scatter.1 (input: f32[8,64]) -> f32[8,16] {
  %input = f32[8,64]{1,0} parameter(0)
  %all-reduce.9 = f32[8,64]{1,0} all-reduce(%input), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %dynamic-slice = f32[8,16]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={8,16}
}

%started (part: bf16[16]) -> (bf16[16], bf16[64]) {
  %part = bf16[16]{0} parameter(0)
  %all-gather.1 = bf16[64]{0:T(256)(128)(2,1)} all-gather(%part), channel_id=1, replica_groups=[2,4]<=[8]
  ROOT %begun = (bf16[16]{0}, bf16[64]{0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%finished (part.2: bf16[16]) -> bf16[64] {
  %part.2 = bf16[16]{0} parameter(0)
  %all-gather.2 = bf16[64]{0:T(256)(128)(2,1)} all-gather(%part.2), channel_id=1, replica_groups=[2,4]<=[8]
  ROOT %done = bf16[64]{0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%inner_body (inner: (s32[], f32[64])) -> (s32[], f32[64]) {
  %inner = (s32[], f32[64]{0}) parameter(0)
  %x = f32[64]{0} get-tuple-element(%inner), index=1
  %all-to-all.1 = f32[64]{0} all-to-all(%x), channel_id=7, replica_groups=mesh['x'=4,'y'=2] {'y'}, dimensions={0}
  ROOT %inner_next = (s32[], f32[64]{0}) tuple(%i, %all-to-all.1)
}

%inner_condition (inner.1: (s32[], f32[64])) -> pred[] {
  %inner.1 = (s32[], f32[64]{0}) parameter(0)
  ROOT %never = pred[] custom-call(%inner.1), custom_call_target="Unknown"
}

%body (state: (s32[], f32[64])) -> (s32[], f32[64]) {
  %state = (s32[], f32[64]{0}) parameter(0)
  %start = (bf16[16]{0}, bf16[64]{0}) fusion(%p), kind=kCustom, calls=%started
  %end = bf16[64]{0} fusion(%start), kind=kCustom, calls=%finished
  %scattered = f32[8,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %while.2 = (s32[], f32[64]{0}) while(%state), condition=%inner_condition, body=%inner_body
  ROOT %next = (s32[], f32[64]{0}) tuple(%i.1, %y)
}

%condition (state.1: (s32[], f32[64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  %state.1 = (s32[], f32[64]{0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (p0: f32[100,3]) -> f32[] {
  %p0 = f32[100,3]{1,0} parameter(0)
  %scalar = f32[] constant(1.5)
  %q = f32[100]{0} bitcast(%p0)
  %two = s32[] constant(2)
  %copied = s32[] copy(%two)
  %begin = (s32[], /*index=1*/f32[64]{0}) tuple(%copied, %z)
  %while.1 = (s32[], f32[64]{0}) while(%begin), condition=%condition, body=%body
  %all-reduce.1 = (f32[100,3]{1,0}, f32[]) all-reduce(%p0, %scalar), channel_id=2, replica_groups={{0,1},{2,3}}
  %alone = f32[100]{0} all-reduce(%q), channel_id=3, replica_groups={{0},{1}}, to_apply=%add
  %permute-start = (f32[8]{0}, f32[8]{0}) collective-permute-start(%eight), channel_id=5, source_target_pairs={{0,1}}
  %eight = f32[8]{0} bitcast(%q)
  %permute-done = f32[8]{0} collective-permute-done(%permute-start)
  ROOT %result = f32[] constant(0)
}
"""


def test_collectives_count_as_often_as_their_loops_run():
    """Guards against scanned layers that count once, fused parts that each count, and groups of one device."""
    traffic, unknown = collectives(HLO)
    assert unknown == 1  # the inner loop, whose condition says nothing
    assert traffic == {
        "all-gather": Traffic(26, 26 * 128 * 3 / 4),
        "all-reduce": Traffic(1, 1204 * 2 / 2),
        "all-to-all": Traffic(26, 26 * 256 / 2),
        "collective-permute": Traffic(1, 32),
        "reduce-scatter": Traffic(26, 26 * 2048 * 3 / 4),
    }


def test_the_compilers_own_trip_count_comes_first():
    noted = HLO.replace(
        "condition=%inner_condition, body=%inner_body",
        'condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"5"}}',
    )
    module = parse(noted)
    assert trip_count(module, module.instructions["while.2"]) == 5
    assert collectives(noted)[0]["all-to-all"].count == 26 * 5 and collectives(noted)[1] == 0


def test_bytes_and_groups_as_hlo_writes_them():
    assert array_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[5], pred[7], s32[])") == 24 + 10 + 7 + 4
    assert array_bytes("f8e4m3fn[16]{0}") == 16 and array_bytes("s4[8]") == 4 and array_bytes("token[]") == 0
    assert group_size("replica_groups=mesh['a'=4,'b'=2,'c'=8] {'a','c'}, x") == 32
    assert group_size("replica_groups=mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'a'}, dimensions={1}") == 16
    assert group_size("replica_groups=mesh['a'=16] {'a':(2)4}") == 4
    assert group_size("replica_groups=[16,8]<=[8,16]T(1,0)") == 8
    assert group_size("no groups") == 0


FSDP, DATA = MeshShape(1, 4, 1), MeshShape(4, 1, 1)


def compiled_toy(model: Model = TOY, mesh: MeshShape = FSDP, accumulate: int = 1) -> Compiled:
    devices = build_mesh(mesh, get_topology("v5e:2x2").devices)
    return compile_step(Setup(model, 512, ROWS, 10, 1, devices, Execution(accumulate=accumulate)))


@pytest.fixture(scope="module")
def toy() -> Compiled:
    return compiled_toy()


@needs_libtpu
def test_memory_of_a_toy_is_what_its_arrays_take(toy: Compiled):
    memory = toy.memory
    weights = 2 * (2 * 128 * 4 * 64 + 2 * 128 * 2 * 64 + 3 * 128 * 256) + 2 * 512 * 128
    norms, whole = (2 * 2 + 1) * 128, 2 * 2 * 64  # the scales of heads stay whole on each device
    assert memory.parameters == 4 * ((weights + norms) / 4 + whole)
    assert memory.optimizer == 2 * memory.parameters + 4  # two moments and a counter
    assert memory.batch == 2 * (257 * 4 + 256 * (4 + 4 + 1) + 4)
    arguments = memory.peak - memory.activations - memory.code
    given = memory.parameters + memory.optimizer + memory.batch
    assert given <= arguments < 1.5 * given  # the device pads what is not a multiple of its tiles
    assert memory.activations > 0 and memory.code > 0 and memory.needed == memory.peak


@needs_libtpu
def test_traffic_of_a_toy_grows_with_its_layers(toy: Compiled):
    """Guards against loops whose collectives count once, which twice the layers would not change."""
    twice = compiled_toy(replace(TOY, layers=4))
    assert toy.unknown_loops == twice.unknown_loops == 0
    matrices = 2 * 128 * 4 * 64 + 2 * 128 * 2 * 64 + 3 * 128 * 256
    sent = (twice.traffic["all-gather"].bytes - toy.traffic["all-gather"].bytes) / 2
    one_pass = matrices * 2 * 3 / 4  # bfloat16, from three of four devices; forward and backward
    assert 2 * one_pass <= sent < 2.2 * one_pass
    assert "reduce-scatter" in toy.traffic
    assert twice.traffic["reduce-scatter"].count > toy.traffic["reduce-scatter"].count


@needs_libtpu
def test_pieces_added_up_compile_with_a_head_cut_over_all_devices():
    """Guards against libtpu's failure on the gradient of an unembedding that is summed in a loop (loss.py)."""
    assert compiled_toy(accumulate=2).memory.peak


@needs_libtpu
def test_a_whole_copy_on_each_device_gathers_nothing(toy: Compiled):
    whole = compiled_toy(mesh=DATA)
    assert "all-gather" not in whole.traffic and whole.traffic["all-reduce"].bytes > 0
    assert whole.memory.parameters > 3.9 * toy.memory.parameters


@needs_libtpu
def test_slices_are_joined_along_data():
    topology = get_topology("v5e:2x2", slices=2)
    assert (topology.chips, len(topology.devices), topology.kind) == (8, 8, "TPU v5 lite")
    assert build_mesh(MeshShape(fsdp=4), topology.devices).shape == {"data": 2, "fsdp": 4, "tensor": 1}


def plan(capsys, *arguments: str) -> tuple[int, str, str]:
    toy = ["--set=training.tokens=1e6", "--set=training.batch_rows=8", "--set=model.layers=2"]
    status = cli.main(["plan", "train", CONFIG, "--topology", "v5e:2x2", *toy, *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@needs_libtpu
def test_json_says_what_was_chosen_and_what_it_takes(capsys):
    status, out, err = plan(capsys, "--mesh", "fsdp=2", "--remat", "full", "--accumulate", "2", "--days", "2", "--json")
    assert status == 0, err
    made = json.loads(out)
    assert made["topology"]["chips"] == 4 and made["topology"]["memory"] == 15.75 * 2**30
    assert made["run"]["tokens_a_step"] == 8 * 256 and made["run"]["steps"] == 10**6 // 2048
    chosen = made["chosen"]
    assert chosen["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1} and (chosen["remat"], chosen["rows"]) == ("full", 2)
    assert chosen["fits"] and made["tried"] == [chosen]
    assert chosen["set"] == [
        "execution.mesh.fsdp=2",
        "execution.mesh.tensor=1",
        "execution.remat=full",
        "execution.accumulate=2",
    ]
    assert set(chosen["memory"]) == {"parameters", "optimizer", "batch", "activations", "code", "peak", "needed"}
    assert all(set(entry) == {"count", "bytes"} for entry in chosen["collectives"].values())
    days = made["run"]["days_at"]["0.4"]
    assert made["run"]["mfu_needed"] == pytest.approx(0.4 * days / 2)
    flops = made["run"]["tokens"] * made["model"]["flops_per_token"]
    assert days == pytest.approx(flops / (4 * 197e12) / 0.4 / 86400)


@needs_libtpu
def test_the_text_ends_with_what_to_set(capsys):
    status, out, err = plan(capsys)
    assert status == 0, err
    assert "% of 15.75 GiB" in out and "at 40% MFU" in out and "compiled in" in out
    assert out.splitlines()[-1].startswith("use ") and "--set execution.mesh.fsdp=" in out.splitlines()[-1]


@needs_libtpu
def test_what_does_not_fit_is_refused_with_the_bytes_it_needs(capsys):
    large = ["--set=training.batch_rows=65536", "--set=training.context=2048", "--mesh", "data=4"]
    status, out, err = plan(capsys, *large, "--remat", "none", "--accumulate", "1")
    assert status == 2 and "does not fit 15.75 GiB" in out and "at least" in out
    assert "nothing that was compiled fits v5e:2x2; leave mesh, remat, accumulate to the search" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v9:2x2"], "--topology v9:2x2: expected a kind of chip"),
        (["--topology", "v5e"], "--topology v5e: expected a kind of chip"),
        (["--topology", "v5p:4x4"], "--topology v5p:4x4: expected a kind of chip"),
        (["--days", "0"], "--days is 0; it must be above 0"),
        (["--slices", "0"], "--slices is 0; it must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(capsys, arguments: list[str], message: str):
    status, _, err = plan(capsys, *arguments)
    assert status == 2 and message in err and "Traceback" not in err


@needs_libtpu
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v5e:3x5"], "--topology v5e:3x5: libtpu refuses it"),
        (["--mesh", "model=2"], "--mesh model=2: expected sizes of data, fsdp, tensor"),
        (["--mesh", "fsdp=3"], "does not fit 4 devices"),
        (["--set", "training.batch_rows=6"], "training.batch_rows=8"),
        (["--mesh", "fsdp=4", "--accumulate", "4"], "does not divide into 16 parts"),
    ],
)
def test_what_does_not_divide_is_refused_in_one_sentence(capsys, arguments: list[str], message: str):
    status, _, err = plan(capsys, *arguments)
    assert status == 2 and message in err and "Traceback" not in err


def test_without_libtpu_it_says_what_to_install(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    status, _, err = plan(capsys)
    assert status == 2 and "requirements-tpu.txt" in err


LARGE = Model(width=3072, layers=26, heads=24, kv_heads=8, head_dim=128, ffn=8064, dtype="bfloat16")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(LARGE, 49_152, Optimization(context=4096, batch_rows=1024), get_topology("v5p:4x4x4"))


def outcome(peak: int | None) -> Compiled:
    return Compiled(Memory(1, 2, 3, 4, 5, peak, peak or 10**12), {}, 0, 0, 1.0)


@needs_libtpu
def test_layouts_divide_the_devices_the_rows_and_the_model(problem: Problem):
    found = layouts(problem)
    assert {layout.remat for layout in found} == {"none", "dots", "full"}
    for layout in found:
        mesh = layout.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 64 and 8 % mesh.tensor == 0
        assert mesh.fsdp in (1, 4, 16, 64) or mesh.tensor > 1  # products of the slice's sides
        assert 1024 % (mesh.data * mesh.fsdp * layout.accumulate) == 0
    assert all(first.seconds < 1.02 * second.seconds for first, second in zip(found, found[1:], strict=False))


@needs_libtpu
def test_the_search_compiles_the_fastest_first_and_stops_at_one_that_fits(problem: Problem):
    answers = iter([outcome(None), outcome(2**50), outcome(2**30)])
    chosen, tried = search(problem, lambda layout: next(answers))
    assert chosen == tried[-1] and len(tried) == 3
    sizes = [layout.bytes for layout, _ in tried]
    assert sizes == sorted(sizes, reverse=True)  # after one that is too large, only smaller ones are worth a try


@needs_libtpu
def test_the_search_prefers_room_to_spare_to_a_full_device(problem: Problem):
    full, roomy = outcome(int(0.99 * problem.topology.memory)), outcome(2**30)
    answers = iter([full, roomy])
    assert search(problem, lambda layout: next(answers))[0][1] is roomy
    only = replace(problem, mesh=MeshShape(4, 16, 1), remat="full", accumulate=2)
    assert search(only, lambda layout: full)[0][1] is full


@needs_libtpu
def test_the_search_ends_where_nothing_fits(problem: Problem):
    chosen, tried = search(problem, lambda layout: outcome(None))
    assert chosen is None and 1 <= len(tried) <= 6


@needs_libtpu
def test_what_is_given_is_not_searched(problem: Problem):
    given = replace(problem, mesh=MeshShape(4, 16, 1), remat="full", accumulate=2)
    (layout,) = layouts(given)
    assert (layout.mesh, layout.remat, layout.accumulate) == (MeshShape(4, 16, 1), "full", 2)
    assert isinstance(layout, Layout) and search(given, lambda _: outcome(1))[0] is not None
