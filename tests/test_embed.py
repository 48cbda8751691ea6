"""Stage `embed` and its embedders: each document has its own vector, whichever model it is from."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from etils import epath
from safetensors.numpy import load_file, save_file
from tokenizers import models, pre_tokenizers, processors

from sbp_jax.artifacts import Artifact, Output, Recipe, find, parquet
from sbp_jax.config import Embedding, Execution, MeshShape, Model, Tokenizer
from sbp_jax.embedding import models as embedders
from sbp_jax.embedding.embedder import padded_length
from sbp_jax.embedding.whitening import Whitening
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface, parameters
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.stages import embed
from sbp_jax.text import tokenizer as text_tokenizer
from tests import test_hosts
from tests.test_encoder import SIZES, WORDS, bert, load, texts, write_bert

DECODER = Model(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
END = 2  # what a Qwen3-Embedding's tokenizer appends
SETTINGS = Tokenizer(vocab_size=300)


def random_weights(vocabulary: int) -> parameters.Parameters:
    """Far from zero, the norms far from one, so that no part of the arithmetic is without effect."""
    random = np.random.default_rng(0)
    abstract = parameters.abstract(DECODER, vocabulary, build_mesh(MeshShape()))

    def draw(path, leaf):
        norm = path[-1].key.endswith("norm")
        return random.uniform(0.5, 1.5, leaf.shape) if norm else random.normal(0, 0.3, leaf.shape)

    return jax.tree.map(np.float32, jax.tree_util.tree_map_with_path(draw, abstract))


@pytest.fixture
def minilm(tmp_path):
    return write_bert(tmp_path / "bert")


@pytest.fixture
def qwen3(tmp_path) -> epath.Path:
    """A Qwen3-Embedding of random weights, whose tokenizer appends the end as the published one does."""
    path = epath.Path(tmp_path / "qwen3")
    huggingface.save(path, random_weights(64), DECODER, 64, 256, END, layout="qwen3-embedding")
    special = ["<|im_end|>", "[UNK]", "<|endoftext|>", "Instruct", "Query"]
    vocabulary = {word: place for place, word in enumerate([*special, ":", *WORDS[:50]])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A <|endoftext|>", None, [("<|endoftext|>", END)])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def states(folder: epath.Path, ids: list[int]) -> np.ndarray:
    """The hidden states of one document after the final norm, unpadded, on one device."""
    checkpoint = huggingface.inspect(folder)
    weights = huggingface.load(folder, checkpoint.model, checkpoint.vocabulary, build_mesh(MeshShape()))
    decoder = parameters.bind(checkpoint.model, checkpoint.vocabulary, weights)
    tokens = jnp.array([ids])
    return np.asarray(decoder.unembed(decoder.hidden(tokens, jnp.ones_like(tokens), jnp.arange(len(ids))[None]))[0][0])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def word_ids(folder: epath.Path, text: str) -> list[int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_qwen3_embeds_by_the_state_of_the_token_that_ends_a_text(qwen3):
    """Catches pooling a padded position, an end that truncation cut off, and a norm left out."""
    documents = [text.replace("w5", "w4") for text in texts([0, 3, 40, 19, 100])]
    found = load(qwen3, max_tokens=30).embed(documents, batch=8)
    cut = [[*word_ids(qwen3, text)[:29], END] for text in documents]
    np.testing.assert_allclose(found, [unit(states(qwen3, ids)[-1]) for ids in cut], atol=2e-6)


def test_an_older_tokenizer_that_appends_no_end_gives_the_same_vectors(qwen3):
    documents = texts([0, 3, 40])
    newer = load(qwen3, max_tokens=30).embed(documents, batch=8)
    text = json.loads((qwen3 / "tokenizer.json").read_text())
    (qwen3 / "tokenizer.json").write_text(json.dumps(text | {"post_processor": None}))
    np.testing.assert_array_equal(load(qwen3, max_tokens=30).embed(documents, batch=8), newer)
    config = json.loads((qwen3 / "config.json").read_text())
    (qwen3 / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(SbpError, match="appends no token to a text and config.json names no eos_token_id"):
        load(qwen3)


def test_an_instruction_is_put_before_each_document_in_the_format_of_its_model(qwen3, minilm):
    instructed = load(qwen3, instruction="w1 w2").embed(["w3"], batch=1)
    np.testing.assert_array_equal(instructed, load(qwen3).embed(["Instruct: w1 w2\nQuery:w3"], batch=1))
    prefixed = load(minilm, instruction="w1 ").embed(["w3"], batch=1)
    np.testing.assert_array_equal(prefixed, load(minilm).embed(["w1 w3"], batch=1))
    assert not np.allclose(prefixed, load(minilm).embed(["w3"], batch=1), atol=1e-2)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_fewer_dimensions_are_the_first_ones_scaled_anew(qwen3, minilm, name):
    path, documents = minilm if name == "bert" else qwen3, texts([4, 9])
    whole, cut = load(path).embed(documents, batch=2), load(path, dimensions=7).embed(documents, batch=2)
    np.testing.assert_allclose(cut, [unit(row[:7]) for row in whole], atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_bfloat16_is_near_and_its_vectors_are_of_unit_length_in_float32(qwen3, minilm, name):
    path, documents = minilm if name == "bert" else qwen3, texts([0, 4, 9, 30])
    exact, near = (load(path, dtype=dtype).embed(documents, batch=4) for dtype in ("float32", "bfloat16"))
    assert near.dtype == np.float32 and not np.array_equal(near, exact)
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, atol=1e-6)
    assert np.sum(near * exact, axis=1).min() > 0.998


def test_texts_without_words_and_of_one_word_have_unit_vectors(qwen3, minilm, base):
    documents = ["", "  \n\t ", "w1 " * 300, "w1"]
    for embedder in (load(minilm), load(qwen3), own(*base)):
        vectors = embedder.embed(documents, batch=3)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert load(minilm).embed([], batch=3).shape == (0, 24)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[epath.Path, text_tokenizer.TextTokenizer]:
    """A base model as training leaves it, and its tokenizer."""
    path = epath.Path(tmp_path_factory.mktemp("base"))
    trained = text_tokenizer.train(texts([50] * 4), SETTINGS)
    trained.save(path / "trained.json")
    weights = random_weights(trained.vocab_size)
    huggingface.save(path / "best", weights, DECODER, trained.vocab_size, 64, trained.end_of_document)
    return path / "best", trained


def own(folder, tokenizer, **settings):
    embedding = Embedding(**({"model": "self", "max_tokens": 20} | settings))
    return embedders.load_base(folder, tokenizer, DECODER, embedding, build_mesh(MeshShape()))


def test_the_base_model_embeds_by_the_mean_over_the_tokens_of_a_document(base):
    """The token before a document gives context, as in training, and is no part of the mean."""
    documents = texts([1, 3, 30])
    found = own(*base).embed(documents, batch=8)
    encoded = [[base[1].end_of_document, *ids[:19]] for ids in base[1].encode_batch(documents)]
    assert len(encoded[2]) == 20 > len(encoded[0])
    np.testing.assert_allclose(found, [unit(states(base[0], ids)[1:].mean(0)) for ids in encoded], atol=2e-6)


def test_the_base_model_is_not_read_past_its_context_nor_as_another(base):
    with pytest.raises(SbpError, match="embedding.max_tokens is 65; .* reads 3 to 64 tokens"):
        own(*base, max_tokens=65)
    with pytest.raises(SbpError, match=r"set these fields of `model`: ffn=48 \(not 64\)"):
        embedders.load_base(*base, Model(**(vars(DECODER) | {"ffn": 64})), Embedding(), build_mesh(MeshShape()))


def test_a_model_of_another_kind_tokenizer_or_pooling_is_refused(qwen3, minilm):
    for path, file, change, message in (
        (minilm, "config.json", {"model_type": "t5"}, "is of type 't5'; embedding.model can be a bert or a qwen3"),
        (minilm, "tokenizer.json", {"post_processor": None}, r"adds no \[CLS\] and \[SEP\]"),
        (
            minilm,
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True},
            "pools by pooling_mode_cls_token, not mean",
        ),
        (qwen3, "1_Pooling/config.json", {"pooling_mode": "mean"}, "pools by mean, not lasttoken"),
        (qwen3, "modules.json", [{"type": "sentence_transformers.models.Dense"}], "has a module Dense"),
    ):
        before = (path / file).read_text() if (path / file).exists() else None
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(
            json.dumps((json.loads(before) if before else {}) | change if type(change) is dict else change)
        )
        with pytest.raises(SbpError, match=message):
            load(path)
        (path / file).unlink() if before is None else (path / file).write_text(before)
    (path / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true}')
    load(qwen3)
    tokenizer = tokenizers.Tokenizer.from_file(str(qwen3 / "tokenizer.json"))
    tokenizer.add_tokens([f"new{number}" for number in range(20)])
    tokenizer.save(str(qwen3 / "tokenizer.json"))
    with pytest.raises(SbpError, match="the tokenizer has an id 75, the model 64 embeddings"):
        load(qwen3)
    (qwen3 / "tokenizer.json").unlink()
    with pytest.raises(SbpError, match="has no tokenizer.json"):
        load(qwen3)


def test_padded_lengths_grow_by_steps_and_hold_what_they_pad():
    padded = [padded_length(length) for length in range(1, 40_000)]
    assert all(length <= long for length, long in enumerate(padded, start=1)) and len(set(padded)) < 40
    assert all(long <= 1.34 * length for length, long in enumerate(padded, start=1) if length > 96)


def corpus(path, splits: list[str]) -> tuple[Artifact, Artifact, list[str]]:
    """Documents and splits in shards of seven, and the texts."""
    documents = Output(epath.Path(path / "documents"), Recipe("ingest", 1, {}, {}), "ingest")
    split = Output(epath.Path(path / "splits"), Recipe("split", 1, {}, {}), "split")
    words = texts([3 + place % 20 for place in range(len(splits))])
    for shard, first in enumerate(range(0, len(splits), 7)):
        part = slice(first, first + 7)
        ordinals = list(range(len(splits)))[part]
        table = pa.table({"ordinal": ordinals, "id": [f"id{place}" for place in ordinals], "text": words[part]})
        documents.shard(shard, ".parquet", lambda writing, table=table: parquet.write(writing, table))
        table = pa.table({"ordinal": ordinals, "split": splits[part]})
        split.shard(shard, ".parquet", lambda writing, table=table: parquet.write(writing, table))
    return documents.finish(), split.finish(), words


SPLITS = [("capped", "oracle", "capped", "test", "validation")[place % 5] for place in range(30)]
CAPPED = [place for place, split in enumerate(SPLITS) if split == "capped"]


def embedded(path, embedding: Embedding, name: str = "embed", splits: list[str] = SPLITS, **more) -> Artifact:
    documents, split, _ = corpus(path, splits)
    output = Output(epath.Path(path / name), Recipe("embed", 1, {}, {}), "embed")
    return embed.run(
        output, documents=documents, splits=split, embedding=embedding, execution=Execution(embed_batch=8), **more
    )


def vectors_of(artifact: Artifact) -> np.ndarray:
    return np.array(parquet.read(artifact)["embedding"].to_pylist(), np.float32)


def test_only_the_capped_set_is_embedded_each_document_under_its_own_ordinal(minilm, tmp_path, monkeypatch):
    """A vector filed under another document's ordinal would make pairs of unrelated texts."""
    monkeypatch.setattr(embed, "DOCUMENTS_PER_SHARD", 4)
    monkeypatch.setattr(embed, "WINDOW", 2)
    artifact = embedded(tmp_path, Embedding(model=str(minilm), max_tokens=30))
    table = parquet.read(artifact)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), SIZES["width"])
    assert table["ordinal"].to_pylist() == CAPPED
    assert [file.rows for file in artifact.files] == [2, 1, 2, 1, 2, 1, 1, 2, 0] and artifact.stats["documents"] == 12
    _, _, words = corpus(tmp_path, SPLITS)
    tensors = load_file(minilm / "model.safetensors")
    expected = np.stack([bert(tensors, words[place], 30) for place in CAPPED])
    np.testing.assert_allclose(vectors_of(artifact), expected, atol=3e-6)


def test_a_killed_run_keeps_its_shards_and_ends_as_one_that_was_not(minilm, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "DOCUMENTS_PER_SHARD", 4)
    settings = Embedding(model=str(minilm), max_tokens=30)
    whole = embedded(tmp_path, settings)
    write, written = embed._write, []

    def dies(writing, *rest):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(writing.path)
        write(writing, *rest)

    monkeypatch.setattr(embed, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        embedded(tmp_path, settings, "resumed")
    before = {path: path.stat().mtime for path in written}
    monkeypatch.setattr(embed, "_write", write)
    resumed = embedded(tmp_path, settings, "resumed")
    assert [file.checksum for file in resumed.files] == [file.checksum for file in whole.files]
    assert {path: path.stat().mtime for path in written} == before, "finished shards are not made again"


def test_shards_grow_with_the_corpus_so_that_their_number_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "DOCUMENTS_PER_SHARD", 1)
    monkeypatch.setattr(embed, "SHARDS", 10)
    parts = embed._parts(corpus(tmp_path, SPLITS)[0])
    assert [(part.file[:10], part.start, part.stop) for part in parts[:4]] == [
        *(("part-00000", start, stop) for start, stop in ((0, 3), (3, 6), (6, 7))),
        ("part-00001", 0, 3),
    ]
    assert sum(part.stop - part.start for part in parts) == 30 and len(parts) <= 10 + 5


def test_the_stage_embeds_with_the_base_model(base, tmp_path):
    trained = Output(epath.Path(tmp_path / "trained"), Recipe("train", 1, {}, {}), "train")
    for path in sorted(base[0].iterdir()):
        with trained.writing(f"best/{path.name}") as writing:
            writing.path.write_bytes(path.read_bytes())
    tokenizer = Output(epath.Path(tmp_path / "tokenizer"), Recipe("tokenizer", 1, {}, {}), "tokenizer")
    with tokenizer.writing("tokenizer.json") as writing:
        base[1].save(writing.path)
    settings = Embedding(model="self", max_tokens=20)
    more = {"base": trained.finish(), "tokenizer": tokenizer.finish(), "model": DECODER, "settings": SETTINGS}
    found = vectors_of(embedded(tmp_path, settings, **more))
    _, _, words = corpus(tmp_path, SPLITS)
    np.testing.assert_allclose(found, own(*base).embed([words[place] for place in CAPPED], batch=4), atol=2e-6)
    whitened = vectors_of(embedded(tmp_path / "whitened", replace(settings, whiten=True), **more))
    wanted = Whitening.fit(found)(found)
    np.testing.assert_allclose(whitened @ whitened.T, wanted @ wanted.T, atol=1e-4)
    assert np.abs(whitened - found).max() > 0.1


# One host of several; {before} may break something first.
HOST = """
import os, signal
from sbp_jax.parallel import hosts
hosts.start(heartbeat_seconds=10)
import jax
from tests.test_embed import Embedding, Execution, Output, Recipe, embed, epath, find
process, written, write = jax.process_index(), [], embed._write
def counted(writing, *rest):
    {before}
    written.append(writing.path.name)
    write(writing, *rest)
embed._write, embed.DOCUMENTS_PER_SHARD = counted, 4
folder = epath.Path({folder!r})
output = Output(folder / "together", Recipe("embed", 1, dict(), dict()), "embed", writes=hosts.is_first())
inputs = dict((name, find(folder / name, "")) for name in ("documents", "splits"))
settings = Embedding(model={model!r}, max_tokens=30)
made = embed.run(output, **inputs, embedding=settings, execution=Execution(embed_batch=8))
print("wrote", *written, "of", made.rows)
"""


@pytest.mark.slow
def test_hosts_make_the_shards_of_one_apart_and_go_on_after_one_was_lost(minilm, tmp_path, monkeypatch):
    def start(before: str) -> list[tuple[int, str, str]]:
        script = HOST.format(folder=str(tmp_path), model=str(minilm), before=before)
        return test_hosts.finish(test_hosts.processes("-c", script))

    monkeypatch.setattr(embed, "DOCUMENTS_PER_SHARD", 4)
    alone = embedded(tmp_path, Embedding(model=str(minilm), max_tokens=30))
    lost = start("if process == 1 and len(written) == 2: os.kill(os.getpid(), signal.SIGKILL)")
    assert 0 not in [status for status, _, _ in lost], "the one left does not wait for shards that nobody makes"
    (first, out, err), (second, other, error) = start("pass")
    assert (first, second) == (0, 0), err + error
    assert "wrote of 12" in out and "wrote part-00005.parquet part-00007.parquet of 12" in other
    together = find(epath.Path(tmp_path / "together"), "")
    np.testing.assert_allclose(vectors_of(together), vectors_of(alone), atol=1e-6)


def test_a_model_that_gives_no_number_is_reported_with_the_document(minilm, tmp_path):
    tensors = load_file(minilm / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][:] = np.inf
    save_file(tensors, minilm / "model.safetensors")
    with pytest.raises(SbpError, match="3 of 3 documents a vector that is not finite; the first has id id0"):
        embedded(tmp_path, Embedding(model=str(minilm), max_tokens=30))
