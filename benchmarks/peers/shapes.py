"""The shapes that ours and the peers are measured at, the data, and the optimizer's numbers."""

import numpy as np

# Vocabulary, rows of a step and tokens of a row go with each model; embeddings are not tied.
QWEN3_16M = dict(width=384, layers=6, heads=6, kv_heads=2, head_dim=64, ffn=1024, vocabulary=8192, rows=8, context=512)
DECODER_6M = dict(width=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffn=768, vocabulary=6144, rows=8, context=256)
PAPER_3B = dict(  # configs/paper_200b_3b.py; rows are those of one chip
    width=3072, layers=26, heads=24, kv_heads=8, head_dim=128, ffn=8064, vocabulary=49_152, rows=4, context=4096
)
ROPE_BASE, NORM_EPSILON = 10_000.0, 1e-6
LEARNING_RATE, BETA1, BETA2, WEIGHT_DECAY, CLIP = 1e-3, 0.9, 0.95, 0.1, 1.0


def rows(shape: dict[str, int]) -> np.ndarray:
    """One batch of random tokens, int32 [rows, context + 1]; every step reads it again, so that the loss falls."""
    size = shape["rows"], shape["context"] + 1
    return np.random.default_rng(0).integers(0, shape["vocabulary"], size).astype(np.int32)
