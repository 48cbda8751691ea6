"""Embedders have the vectors that transformers gives for the same files, as the model cards compute them."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sbp_jax.config import Embedding, MeshShape
from sbp_jax.embedding import models as embedders
from sbp_jax.model import encoder
from sbp_jax.parallel.mesh import build_mesh

EXACT, NEAR = 1e-5, 2e-3  # how far a cosine may be from 1: in float32, and in bfloat16 beside float32
END = "<|endoftext|>"
TASK = "Find documents on the same subject"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of many lengths, none, and three of more tokens than are read."""
    with gzip.open("data/wikipedia_vital/documents.jsonl.gz", "rt") as stream:
        documents = [json.loads(line)["text"] for line in stream][:400]
    cut = [text[: 5 + 60 * place] for place, text in enumerate(documents[:30])]
    joined = [" ".join(documents[start : start + 12]) for start in (40, 60, 80)]
    return ["", " ", "\n", "word", "naïve café 東京 \U0001f9ea", "again " * 400, *cut, *joined]


def close(ours: np.ndarray, theirs: np.ndarray, bound: float) -> None:
    cosines = np.sum(ours * theirs, axis=1)
    print("least cosine", cosines.min())
    others = (theirs @ theirs.T)[np.triu_indices(len(theirs), 1)]
    assert np.median(others) < 0.9, "vectors so alike that they agree whatever they are"
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert np.abs(1 - cosines).max() < bound


def ours(folder: Path | str, texts: list[str], **settings) -> np.ndarray:
    embedder = embedders.load(Embedding(model=str(folder), **settings), build_mesh(MeshShape()))
    return embedder.embed(texts, batch=8)


def unit(states: torch.Tensor, dimensions: int | None = None) -> np.ndarray:
    return torch.nn.functional.normalize(states[:, :dimensions].float(), dim=1).numpy()


@pytest.mark.parametrize("max_tokens", [64, 512])
def test_minilm_pools_by_the_mean_as_its_model_card_does(texts, max_tokens):
    folder = encoder.find(encoder.PACKAGED)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    assert batch["attention_mask"].sum(1).max() == max_tokens
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    theirs = unit((states * mask).sum(1) / mask.sum(1))
    close(ours(encoder.PACKAGED, texts, max_tokens=max_tokens), theirs, EXACT)
    close(ours(encoder.PACKAGED, texts, max_tokens=max_tokens, dtype="bfloat16"), theirs, NEAR)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory, texts) -> Path:
    """A Qwen3-Embedding of random weights, whose tokenizer appends the end of a text as the published one does."""
    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_end|>", END]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet)
    )
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {END}", f"$A {END} $B {END}", [(END, end)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=END)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=1024,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=160,
        max_position_embeddings=2048,
        initializer_range=0.1,  # large, so that vectors differ from one another
        eos_token_id=end,
    )
    model = transformers.Qwen3Model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def last_token_pool(folder: Path, texts: list[str], max_tokens: int) -> torch.Tensor:
    """The states that the model card takes, texts padded on the left."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    assert set(batch["input_ids"][:, -1].tolist()) == {tokenizer.convert_tokens_to_ids(END)}
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**batch).last_hidden_state[:, -1]


@pytest.mark.parametrize(("max_tokens", "dimensions"), [(48, None), (700, None), (700, 32)])
def test_qwen3_embedding_pools_by_the_last_token_as_its_model_card_does(qwen3, texts, max_tokens, dimensions):
    theirs = unit(last_token_pool(qwen3, texts, max_tokens), dimensions)
    settings = {"max_tokens": max_tokens, "dimensions": dimensions}
    close(ours(qwen3, texts, **settings), theirs, EXACT)
    close(ours(qwen3, texts, **settings, dtype="bfloat16"), theirs, NEAR)


def test_the_instruction_of_qwen3_embedding_is_that_of_its_model_card(qwen3, texts):
    instructed = [f"Instruct: {TASK}\nQuery:{text}" for text in texts]
    theirs = unit(last_token_pool(qwen3, instructed, 256))
    close(ours(qwen3, texts, max_tokens=256, instruction=TASK), theirs, EXACT)
