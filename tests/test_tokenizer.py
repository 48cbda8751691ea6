"""The tokenizer: exact round trips, and no way for a document to write a control token."""

import json

import numpy as np
import pytest
import tokenizers
from etils import epath
from tokenizers import AddedToken, models, pre_tokenizers, processors

from sbp_jax.artifacts import Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Corpus, Execution, Splits, Tokenizer
from sbp_jax.errors import SbpError
from sbp_jax.stages import ingest, split, tokenize, train_tokenizer
from sbp_jax.text.tokenizer import load, train

CONFIG = Tokenizer(vocab_size=300)
TEXTS = [f"The quick brown fox {i} jumps over the lazy dog, {i * i} times." for i in range(50)]
STRANGE = [
    "  leading and   inner spaces \t\r\n\n end \n",
    "naïve café 中文 日本語 한국어 العربية 👩‍👩‍👧‍👦 \U0010ffff",
    "\x00\x01\x7f\ufeff\u2028\u0301",
    "cafe\u0301 and caf\u00e9 stay apart",
    "before <|endoftext|> between <|separator|> after<|endoftext|>",
    "",
]


def test_any_text_survives_the_round_trip():
    tokenizer = train(TEXTS, CONFIG)
    for text, ids in zip(STRANGE, tokenizer.encode_batch(STRANGE), strict=True):
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.end_of_document, tokenizer.separator} & set(ids.tolist())


def test_training_twice_gives_the_same_file_and_loading_it_the_same_ids(tmp_path):
    first, second = train(iter(TEXTS), CONFIG), train(iter(TEXTS), CONFIG)
    path, again = epath.Path(tmp_path / "a.json"), epath.Path(tmp_path / "b.json")
    first.save(path)
    second.save(again)
    assert path.read_bytes() == again.read_bytes()
    loaded = load(path, CONFIG)
    assert first.vocab_size == loaded.vocab_size == 300
    assert (first.end_of_document, first.separator) == (loaded.end_of_document, loaded.separator)
    for a, b in zip(first.encode_batch(TEXTS + STRANGE), loaded.encode_batch(TEXTS + STRANGE), strict=True):
        assert np.array_equal(a, b)


def own_tokenizer() -> tokenizers.Tokenizer:
    """A tokenizer.json as people have them: adds a beginning, cuts, pads, and holds a token of ours as plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.add_special_tokens(["<s>"])
    own.add_tokens([AddedToken("<|endoftext|>", special=False)])
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    own.enable_truncation(8)
    own.enable_padding(length=32)
    return own


def test_a_tokenizer_brought_along_adds_cuts_and_pads_nothing(tmp_path):
    """Its post-processor, truncation, padding and plain added tokens would all change documents silently."""
    path = epath.Path(tmp_path / "own.json")
    own_tokenizer().save(str(path))
    tokenizer = load(path, Tokenizer(path=str(path)))
    ids = tokenizer.encode_batch(["abcdefghijkl", "a<|endoftext|>b<|separator|>"])
    assert [len(row) for row in ids] == [12, len("a<|endoftext|>b<|separator|>")]
    assert (tokenizer.end_of_document, tokenizer.separator, tokenizer.vocab_size) == (257, 258, 259)


@pytest.mark.parametrize(
    "content", [None, "", "{}", "no json", json.dumps({"model": {"type": "Nothing"}}), b"\xff\xfe"]
)
def test_a_file_that_is_no_tokenizer_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "own.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SbpError, match="own.json"):
        load(epath.Path(path), CONFIG)


def test_impossible_settings_are_errors():
    with pytest.raises(SbpError, match="258"):
        train(TEXTS, Tokenizer(vocab_size=257))
    with pytest.raises(SbpError, match="different"):
        train(TEXTS, Tokenizer(vocab_size=300, separator="<|endoftext|>"))


def test_stages_train_on_the_capped_set_alone_and_record_i_is_ordinal_i(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": f"{t} №{i}"}) + "\n" for i, t in enumerate(TEXTS))
    )

    def output(name: str) -> Output:
        return Output(epath.Path(tmp_path / name), Recipe(name, 1, {}, {}), name)

    corpus, fractions = (
        Corpus(paths=(str(tmp_path / "a.jsonl"),), documents_per_shard=7),
        Splits(0.2, 0.2, near_duplicate=1),
    )
    documents = ingest.run(output("ingest"), corpus=corpus, execution=Execution())
    splits = split.run(output("split"), documents=documents, splits=fractions, execution=Execution())
    trained = train_tokenizer.run(
        output("tokenizer"), documents=documents, splits=splits, tokenizer=CONFIG, execution=Execution()
    )
    tokens = tokenize.run(
        output("tokenize"), documents=documents, tokenizer=trained, settings=CONFIG, execution=Execution()
    )
    chosen = [name == "capped" for name in parquet.read(splits)["split"].to_pylist()]
    texts = parquet.read(documents)["text"].to_pylist()
    expected = train([text for text, capped in zip(texts, chosen, strict=True) if capped], CONFIG)
    assert 0 < sum(chosen) < len(texts)
    records = arrayrecord.source(tokens)
    assert len(records) == len(texts) == tokens.stats["documents"]
    for record, ids in zip(records, expected.encode_batch(texts), strict=True):
        assert np.array_equal(np.frombuffer(record, "<i4"), ids)
    assert tokens.stats["tokens"] == sum(map(len, expected.encode_batch(texts)))
    assert tokens.stats["bytes"] == documents.stats["bytes"]
