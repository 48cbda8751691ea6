"""Checkpoints as folders of Hugging Face: what is written comes back, and what cannot be read is named."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from sbp_jax.config import MeshShape, Model, RopeScaling
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface, parameters
from sbp_jax.model.parameters import Parameters
from sbp_jax.parallel.mesh import build_mesh

QWEN3 = Model(width=32, layers=3, heads=4, kv_heads=2, head_dim=16, ffn=48, rope_base=1e6)
LLAMA = replace(QWEN3, qk_norm=False, head_dim=8, norm_epsilon=1e-5, rope_scaling=RopeScaling(factor=4, context=64))
LAYOUTS = {"qwen3": QWEN3, "llama": LLAMA, "qwen3-embedding": QWEN3}
ROWS, CONTEXT, END = 1000, 64, 7  # 1000 is no multiple of 128
MESHES = (MeshShape(), MeshShape(fsdp=4, tensor=2), MeshShape(data=2, fsdp=2, tensor=2))


def random_weights(config: Model, rows: int = ROWS) -> Parameters:
    """Parameters of the host, zero where the table is only filled up."""
    random = np.random.default_rng(0)
    shapes = parameters.abstract(config, rows, build_mesh(MeshShape()))
    weights = jax.tree.map(lambda leaf: random.normal(1, 0.5, leaf.shape).astype(np.float32), shapes)
    for name in ("embedding", "unembedding"):
        if name in weights:
            weights[name][rows:] = 0
    return weights


def saved(folder: Path, config: Model = QWEN3, rows: int = ROWS, **options) -> epath.Path:
    huggingface.save(epath.Path(folder), random_weights(config, rows), config, rows, CONTEXT, END, **options)
    return epath.Path(folder)


def read(folder: epath.Path, mesh: MeshShape = MESHES[0]) -> Parameters:
    checkpoint = huggingface.inspect(folder)
    return huggingface.load(folder, checkpoint.model, checkpoint.vocabulary, build_mesh(mesh))


def equal(one: Parameters, other: Parameters) -> None:
    flat, flat_other = jax.tree_util.tree_leaves_with_path(one), jax.tree_util.tree_leaves_with_path(other)
    assert [name for name, _ in flat] == [name for name, _ in flat_other]
    for (name, array), (_, array_other) in zip(flat, flat_other, strict=True):
        np.testing.assert_array_equal(np.asarray(array), np.asarray(array_other), err_msg=str(name))


def refused(folder: epath.Path) -> str:
    with pytest.raises(SbpError) as caught:
        read(folder)
    return str(caught.value)


def configured(folder: epath.Path, **fields) -> epath.Path:
    """The same model with other fields in its config; those that are None are left out."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_comes_back_bit_for_bit_on_any_mesh(tmp_path, layout, tied):
    """Guards names, transposes and cuts: every part of every parameter lands where it was."""
    config = replace(LAYOUTS[layout], tied_embeddings=tied)
    weights, folder = random_weights(config), saved(tmp_path / "one", config, layout=layout)
    if layout == "qwen3-embedding":  # has no head, whatever the config says
        weights.pop("unembedding", None)
        config = replace(config, tied_embeddings=True)
    found = huggingface.inspect(folder)
    assert (found.model, found.vocabulary, found.context, found.end_of_document) == (config, ROWS, CONTEXT, END)
    for mesh in MESHES:
        loaded = read(folder, mesh)
        equal(loaded, weights)
        target = parameters.abstract(config, ROWS, build_mesh(mesh))
        assert jax.tree.all(jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding, loaded, target))
        again = epath.Path(tmp_path / f"{mesh.fsdp}{mesh.data}")
        huggingface.save(again, loaded, config, ROWS, CONTEXT, END, layout=layout)
        assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("rows", [1, 128, 129, 1000])
def test_tables_have_the_rows_of_the_vocabulary_in_the_file(tmp_path, rows):
    folder = saved(tmp_path, rows=rows)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == (rows, 32)
    assert tensors["model.layers.2.self_attn.k_proj.weight"].shape == (2 * 16, 32), "Hugging Face keeps [out, in]"
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == rows
    equal(read(folder), random_weights(QWEN3, rows))


def test_new_tokens_start_as_the_mean_of_the_old_and_padding_as_zeros(tmp_path):
    config = replace(QWEN3, tied_embeddings=False)
    old, folder = random_weights(config, 130), saved(tmp_path, config, 130)
    for mesh in MESHES:
        new = huggingface.load(folder, config, 133, build_mesh(mesh))
        for name in ("embedding", "unembedding"):
            table = np.asarray(new[name])
            np.testing.assert_array_equal(table[:130], old[name][:130])
            np.testing.assert_allclose(table[130:133], np.tile(old[name][:130].mean(0), (3, 1)), rtol=1e-5)
            assert not table[133:].any()
    with pytest.raises(SbpError, match="130 rows of embeddings for a vocabulary of 129"):
        huggingface.load(folder, config, 129, build_mesh(MESHES[0]))


def test_large_models_go_into_several_files(tmp_path):
    names = huggingface.save(
        epath.Path(tmp_path / "many"), random_weights(QWEN3), QWEN3, ROWS, CONTEXT, END, largest_file=20_000
    )
    shards = [name for name in names if name.startswith("model-")]
    assert len(shards) > 4 and names[-2:] == ["model.safetensors.index.json", "config.json"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "many").iterdir())
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    parts = {name: safetensors.numpy.load_file(tmp_path / "many" / name) for name in shards}
    assert index["weight_map"] == {tensor: name for name, part in parts.items() for tensor in part}
    sizes = {name: sum(tensor.nbytes for tensor in part.values()) for name, part in parts.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert all(size <= 20_000 or len(parts[name]) == 1 for name, size in sizes.items())
    equal(read(epath.Path(tmp_path / "many")), read(saved(tmp_path / "one")))


def test_bfloat16_is_written_rounded_and_read_exactly(tmp_path):
    folder = saved(tmp_path, dtype="bfloat16")
    rounded = jax.tree.map(lambda array: array.astype(ml_dtypes.bfloat16).astype(np.float32), random_weights(QWEN3))
    equal(read(folder), rounded)
    on_device = parameters.place(random_weights(QWEN3), parameters.abstract(QWEN3, ROWS, build_mesh(MESHES[1])))
    huggingface.save(epath.Path(tmp_path / "two"), on_device, QWEN3, ROWS, CONTEXT, END, dtype="bfloat16")
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_float16_is_read_and_a_target_chooses_the_dtype(tmp_path):
    folder = saved(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(halves, tmp_path / "model.safetensors")
    equal(read(folder), jax.tree.map(lambda array: array.astype(np.float16).astype(np.float32), random_weights(QWEN3)))
    mesh, config = build_mesh(MESHES[0]), replace(QWEN3, dtype="bfloat16")
    target = parameters.to_compute_dtype(config, parameters.abstract(config, ROWS, mesh))
    loaded = huggingface.load(folder, config, ROWS, mesh, target)
    dtypes = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)}
    assert dtypes["up"] == ml_dtypes.bfloat16 and dtypes["query_norm"] == np.float32


def test_what_a_config_leaves_out_has_the_default_of_its_class(tmp_path):
    config = replace(LLAMA, kv_heads=4, rope_base=10_000.0, rope_scaling=None, tied_embeddings=False, norm_epsilon=1e-6)
    left_out = ("num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "hidden_act")
    folder = configured(saved(tmp_path, config), **dict.fromkeys(left_out), architectures=None)
    assert huggingface.inspect(folder).model == config


def test_rope_is_understood_as_every_version_writes_it(tmp_path):
    folder, llama3 = saved(tmp_path, LLAMA), {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert huggingface.inspect(folder).model == LLAMA
    five = llama3 | {"rope_type": "llama3", "rope_theta": 1e6, "original_max_position_embeddings": 64}
    four = llama3 | {"type": "llama3", "original_max_position_embeddings": 64}
    for fields in (
        {"rope_scaling": None, "rope_theta": None, "rope_parameters": five},
        {"rope_scaling": four, "rope_theta": 1e6, "rope_parameters": None},
        {"rope_scaling": llama3 | {"rope_type": "llama3"}, "max_position_embeddings": 64},
        {"original_max_position_embeddings": 64, "max_position_embeddings": 512},
    ):
        assert huggingface.inspect(configured(folder, **fields)).model == LLAMA
    plain = {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert huggingface.inspect(configured(folder, **plain)).model == replace(LLAMA, rope_base=5e5, rope_scaling=None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "the architecture is MistralForCausalLM"),
        ({"architectures": None, "model_type": "gemma3"}, "the architecture is gemma3"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn.*as Llama 3.1 does"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial rotation"),
        ({"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}, "no sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ({"hidden_size": 33}, "shape of .* makes it"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_hidden_layers": 4}, "lacks 11 tensors .* model.layers.3"),
        ({"num_hidden_layers": 2}, "11 tensors that this decoder has no place for"),
        ({"vocab_size": 999}, "shape of model.embed_tokens.weight is"),
        ({"tie_word_embeddings": False}, "lacks 1 tensors .* lm_head.weight"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "q_norm|k_norm"),
        ({"num_hidden_layers": 4, "quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_decoder_cannot_be_is_refused(tmp_path, fields, message):
    """Guards against a model that is imported and gives other logits than it has elsewhere."""
    with pytest.raises(SbpError, match=message):
        huggingface.inspect(configured(saved(tmp_path), **fields))


def test_a_window_that_no_layer_uses_and_a_note_of_past_quantisation_are_welcome(tmp_path):
    unused = {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1, "layer_types": None}
    past = {"quantization_config": {"quant_method": "gguf"}}
    assert huggingface.inspect(configured(saved(tmp_path), **unused, **past)).model == QWEN3


def test_a_head_beside_tied_embeddings_counts_where_it_differs(tmp_path):
    """As transformers takes it: the config says tied, the file has both tables."""
    folder = saved(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)  # as in old files
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    equal(read(folder), random_weights(QWEN3))
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert huggingface.inspect(folder).model == replace(QWEN3, tied_embeddings=False)
    np.testing.assert_array_equal(np.asarray(read(folder)["unembedding"])[:ROWS], tensors["lm_head.weight"])


def test_damage_is_named(tmp_path):
    folder = saved(tmp_path / "many", largest_file=20_000)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:4], b"\xff" * 100, whole[:8] + b"?" + whole[9:]):
        shard.write_bytes(damaged)
        assert f"{shard} is damaged or cut off" in refused(folder)
    shard.unlink()
    assert f"lacks {shard.name}, which model.safetensors.index.json names" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    assert "index.json is damaged" in refused(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    assert "index.json is damaged" in refused(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "has neither model.safetensors nor" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "is not JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder)
    one = saved(tmp_path / "one")
    tensors = safetensors.numpy.load_file(tmp_path / "one" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    safetensors.numpy.save_file(tensors, tmp_path / "one" / "model.safetensors")
    assert "model.norm.weight is of dtype I8" in refused(one)


def test_an_index_that_says_otherwise_than_its_files_is_damage(tmp_path):
    folder = saved(tmp_path, largest_file=20_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = shards[0]
    path.write_text(json.dumps(index))
    assert "has no tensor model.norm.weight" in refused(folder)


def test_another_model_than_the_configs_is_an_error_that_names_the_fields(tmp_path):
    folder = saved(tmp_path)
    other = replace(QWEN3, ffn=64, rope_base=1e4, dtype="bfloat16")
    with pytest.raises(SbpError, match=r"these fields of `model`: ffn=48 \(not 64\), rope_base=1000000.0 \(not 1"):
        huggingface.load(folder, other, ROWS, build_mesh(MESHES[0]))


def test_a_layout_or_dtype_that_does_not_fit_is_refused(tmp_path):
    for config, options, message in (
        (QWEN3, {"layout": "llama"}, "normalises queries and keys.*use qwen3"),
        (LLAMA, {"layout": "qwen3"}, "does not normalise.*use llama"),
        (QWEN3, {"layout": "gpt2"}, "there is no layout gpt2"),
        (QWEN3, {"dtype": "int8"}, "use float32 or bfloat16"),
    ):
        with pytest.raises(SbpError, match=message):
            saved(tmp_path / "refused", config, **options)
    assert not (tmp_path / "refused").exists()


LARGE = Model(width=768, layers=10, heads=12, kv_heads=4, head_dim=64, ffn=3072)  # 396 MB
MEASURE = """
import sys
import jax
from etils import epath
from sbp_jax.config import MeshShape
from sbp_jax.model import huggingface
from sbp_jax.parallel.mesh import build_mesh
def peak():  # of this program alone; what getrusage says starts with the peak of the process it was forked from
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])
folder, target = map(epath.Path, sys.argv[1:])
found, mesh = huggingface.inspect(folder), build_mesh(MeshShape())
jax.block_until_ready(jax.jit(lambda: jax.numpy.ones(8))())
start = peak()
weights = huggingface.load(folder, found.model, found.vocabulary, mesh)
loaded = peak()
huggingface.save(target, weights, found.model, found.vocabulary, 64, 0, dtype="bfloat16", largest_file=10**8)
print(sum(leaf.nbytes for leaf in jax.tree.leaves(weights)), loaded - start, peak() - loaded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_is_in_memory_once_while_it_is_read_and_written(tmp_path):
    """Resident memory of a process of its own: a second copy of the 396 MB, of the host or of a file, would show."""
    mesh = build_mesh(MeshShape(fsdp=8))
    weights = parameters.initialize(LARGE, 16_384, 0, mesh)
    huggingface.save(epath.Path(tmp_path / "large"), weights, LARGE, 16_384, 64, 0)
    del weights
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path / "again")]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, reading, writing = map(int, done.stdout.split())
    print(f"{size / 1e6:.0f} MB; read with {reading / 1e6:.0f} MB, written with {writing / 1e6:.0f} MB more")
    assert size > 390e6
    assert size < reading < 1.4 * size and writing < 0.4 * size


PROCESS = """
import sys
from etils import epath
from sbp_jax.config import MeshShape
from sbp_jax.model import huggingface
from sbp_jax.parallel import hosts
from sbp_jax.parallel.mesh import build_mesh
hosts.start()
source, target = map(epath.Path, sys.argv[1:])
found = huggingface.inspect(source)
weights = huggingface.load(source, found.model, found.vocabulary, build_mesh(MeshShape(fsdp=2, tensor=2)))
assert not weights["layers"]["up"].is_fully_addressable
names = huggingface.save(target, weights, found.model, found.vocabulary, 64, 7, largest_file=20_000)
hosts.all_say(0)  # a barrier
assert sorted(names) == sorted(path.name for path in target.iterdir())
"""


@pytest.mark.slow
def test_two_processes_read_their_parts_and_write_the_whole_once(tmp_path):
    """Two processes with two devices each: neither can see the other's parts, and the files are those of one."""
    config = replace(QWEN3, tied_embeddings=False)
    source = saved(tmp_path / "source", config, largest_file=20_000)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-c", PROCESS, str(source), str(tmp_path / "target")]
    started = []
    for process in range(2):
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(process),
        }
        started.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    for path in source.iterdir():
        assert (tmp_path / "target" / path.name).read_bytes() == path.read_bytes()
