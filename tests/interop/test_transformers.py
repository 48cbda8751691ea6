"""Checkpoints of transformers here and ours there: the same logits, on random weights, in float32."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from etils import epath

from sbp_jax.config import MeshShape, Model, RopeScaling, Tokenizer
from sbp_jax.model import huggingface, parameters
from sbp_jax.model.decoder import Decoder
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text import tokenizer as text_tokenizer

SIZES = {
    "vocab_size": 1000,  # no multiple of 128
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,  # large, so that logits differ from one another
}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0}
CONFIGS = {
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "qwen3-untied": transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False),
    "llama": transformers.LlamaConfig(**SIZES, tie_word_embeddings=False, rms_norm_eps=1e-5),
    "llama-tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-3.1": transformers.LlamaConfig(
        **SIZES, rope_parameters=ROPE | {"original_max_position_embeddings": 32}, tie_word_embeddings=True
    ),
}
MODELS = {
    "qwen3": Model(width=64, layers=3, heads=4, kv_heads=2, head_dim=32, ffn=96, rope_base=1e6),
    "qwen3-untied": Model(width=64, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=96, tied_embeddings=False),
    "llama": Model(width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, qk_norm=False, tied_embeddings=False),
    "llama-3.1": Model(
        width=64, layers=2, heads=4, kv_heads=4, head_dim=16, ffn=96, qk_norm=False, norm_epsilon=1e-5,
        rope_scaling=RopeScaling(factor=4.0, context=32),
    ),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 1000, (2, 100))


def load(folder: Path) -> Decoder:
    checkpoint = huggingface.inspect(epath.Path(folder))
    mesh = build_mesh(MeshShape(fsdp=2, tensor=2))
    weights = huggingface.load(epath.Path(folder), checkpoint.model, checkpoint.vocabulary, mesh)
    return parameters.bind(checkpoint.model, checkpoint.vocabulary, weights)


def inputs(tokens: np.ndarray) -> tuple[jax.Array, ...]:
    """Tokens, segments and positions of one document a row."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jnp.asarray(tokens), jnp.ones_like(positions), positions


def ours(folder: Path, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Logits of a folder by this package, of the rows that are tokens."""
    decoder = load(folder)
    return np.asarray(decoder(*inputs(tokens)))[..., : decoder.vocabulary]


def theirs(folder: Path, tokens: np.ndarray = TOKENS) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def our_states(folder: Path) -> np.ndarray:
    """The last hidden states, which an embedding model pools."""
    decoder = load(folder)
    return np.asarray(decoder.unembed(decoder.hidden(*inputs(TOKENS)))[0])


def agree(one: np.ndarray, other: np.ndarray) -> None:
    print("largest difference", np.abs(one - other).max(), "of values up to", np.abs(other).max())
    assert np.abs(other).max() > 0.5, "logits so small that they agree whatever they are"
    np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


def randomize(model: torch.nn.Module) -> None:
    """Norms that are not all ones, so that one left out or mistaken for another is seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)


@pytest.mark.parametrize("name", CONFIGS)
def test_their_models_have_their_logits_here(tmp_path, name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    randomize(model)
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    assert (tmp_path / "model.safetensors.index.json").exists(), "one of the layouts to read"
    with torch.no_grad():
        agree(ours(tmp_path), model(torch.tensor(TOKENS)).logits.numpy())


def random_weights(config: Model, vocabulary: int) -> parameters.Parameters:
    random = np.random.default_rng(1)
    weights = parameters.abstract(config, vocabulary, build_mesh(MeshShape()))

    def draw(path, leaf):
        norm = path[-1].key.endswith("norm")
        return random.uniform(0.5, 1.5, leaf.shape) if norm else random.normal(0, 0.2, leaf.shape)

    drawn = jax.tree_util.tree_map_with_path(draw, weights)
    return jax.tree.map(lambda array: array.astype(np.float32), drawn)


@pytest.mark.parametrize("name", MODELS)
def test_our_models_have_our_logits_there(tmp_path, name):
    config = MODELS[name]
    huggingface.save(epath.Path(tmp_path), random_weights(config, 1000), config, 1000, 256, 7, largest_file=200_000)
    agree(ours(tmp_path), theirs(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_their_embedding_models_have_their_last_hidden_states_here(tmp_path, tied):
    """Qwen3-Embedding: names without `model.`, no head, whatever the config says of tied embeddings."""
    torch.manual_seed(0)
    model = transformers.Qwen3Model(transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=tied)).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with torch.no_grad():
        states = model(torch.tensor(TOKENS)).last_hidden_state.numpy()
    agree(our_states(tmp_path), states)
    for architecture in ("Qwen3ForCausalLM", "Qwen3Model"):  # the files on the hub say the first
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        agree(our_states(tmp_path), states)


def test_our_embedding_models_have_our_last_hidden_states_there(tmp_path):
    config = MODELS["qwen3"]
    weights = random_weights(config, 1000)
    huggingface.save(epath.Path(tmp_path), weights, config, 1000, 256, 7, layout="qwen3-embedding")
    model = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(model) is transformers.Qwen3Model
    with torch.no_grad():
        agree(our_states(tmp_path), model(torch.tensor(TOKENS)).last_hidden_state.numpy())


def test_a_checkpoint_of_theirs_passes_through_here_unchanged(tmp_path):
    """Read and written again, in bfloat16 as it came: transformers gives the same logits to the bit."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["qwen3"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = huggingface.inspect(epath.Path(tmp_path / "theirs"))
    sizes = checkpoint.model, checkpoint.vocabulary
    weights = huggingface.load(epath.Path(tmp_path / "theirs"), *sizes, build_mesh(MeshShape(fsdp=4, tensor=2)))
    huggingface.save(epath.Path(tmp_path / "ours"), weights, *sizes, checkpoint.context, 0, dtype="bfloat16")
    np.testing.assert_array_equal(theirs(tmp_path / "ours"), theirs(tmp_path / "theirs"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.bfloat16, "what they call the dtype of a checkpoint"


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_auto_tokenizer_loads_ours_and_knows_where_a_document_ends(tmp_path, name):
    texts = ["Gold is a chemical element; its symbol is Au.", "  Två mellanslag, naïve café 東京 \n\n\ttab"]
    tokenizer = text_tokenizer.train(texts * 3, Tokenizer(vocab_size=300))
    tokenizer.save(epath.Path(tmp_path / "trained.json"))
    folder, config = epath.Path(tmp_path / "model"), MODELS[name]
    end = tokenizer.end_of_document
    weights = random_weights(config, tokenizer.vocab_size)
    huggingface.save(folder, weights, config, tokenizer.vocab_size, 256, end)
    huggingface.save_tokenizer(folder, epath.Path(tmp_path / "trained.json"), "<|endoftext|>", 256)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert loaded(text)["input_ids"] == ids.tolist()
        assert loaded.decode(ids.tolist()) == text
    assert (loaded.eos_token, loaded.eos_token_id, len(loaded)) == ("<|endoftext|>", end, tokenizer.vocab_size)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == end
