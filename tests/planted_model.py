"""A small random model in a Hugging Face folder, as a run leaves it, for tests that need none that is good."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from sbp_jax.config import MeshShape, Model, Tokenizer
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import abstract
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.text import tokenizer as text_tokenizer

TEXTS = (
    "Gold is a chemical element; its symbol is Au.\n\nQuestion: Which metal is it?\nAnswer: gold, of course.",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on. Naïve café 東京.",
)
MODEL = Model(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
END = "<|endoftext|>"


def plant(folder: Path, context: int = 160, seed: int = 0) -> Path:
    """Weights larger than at initialization, so that predictions depend on what was read."""
    settings = Tokenizer(vocab_size=330)
    tokenizer = text_tokenizer.train(TEXTS * 3, settings)
    folder.mkdir(parents=True, exist_ok=True)
    trained, model = epath.Path(folder) / "trained.json", epath.Path(folder) / "model"
    tokenizer.save(trained)
    random, shapes = np.random.default_rng(seed), abstract(MODEL, tokenizer.vocab_size, build_mesh(MeshShape()))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        norm = path[-1].key.endswith("norm")
        return (np.ones(leaf.shape) if norm else random.normal(0, 0.16, leaf.shape)).astype(np.float32)

    weights = jax.tree_util.tree_map_with_path(draw, shapes)
    huggingface.save(model, weights, MODEL, tokenizer.vocab_size, context, tokenizer.end_of_document)
    huggingface.save_tokenizer(model, trained, END, context)
    return Path(model)
