"""The shapes as arguments of MaxText."""

import os
import tempfile
from pathlib import Path

import maxtext
import shapes


def settings(shape: dict[str, int], dtype: str, remat: str, attention: str, hardware: str) -> list[str]:
    """What its command line would be given: its base configuration and what differs from it."""
    os.environ["DECOUPLE_GCLOUD"] = "TRUE"  # without it importing and logging reach for Google Cloud
    values = {
        "run_name": "benchmark",
        "base_output_directory": tempfile.mkdtemp(),
        "hardware": hardware,
        "decoder_block": "qwen3",
        "base_emb_dim": shape["width"],
        "base_num_decoder_layers": shape["layers"],
        "base_num_query_heads": shape["heads"],
        "base_num_kv_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "base_mlp_dim": shape["ffn"],
        "vocab_size": shape["vocabulary"],
        "per_device_batch_size": shape["rows"],
        "max_target_length": shape["context"],
        "use_qk_norm": True,
        "logits_via_embedding": False,
        "normalization_layer_epsilon": shapes.NORM_EPSILON,
        "rope_max_timescale": int(shapes.ROPE_BASE),
        "dtype": dtype,
        "remat_policy": {"none": "none", "full": "full"}[remat],
        "attention": attention,
        "opt_type": "adamw",
        "adam_b1": shapes.BETA1,
        "adam_b2": shapes.BETA2,
        "adam_weight_decay": shapes.WEIGHT_DECAY,
        "learning_rate": shapes.LEARNING_RATE,
        "gradient_clipping_threshold": shapes.CLIP,
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "skip_jax_distributed_system": True,
        "steps": 1000,
    }
    base = Path(maxtext.__file__).parent / "configs" / "base.yml"
    return ["", str(base), *(f"{name}={value}" for name, value in values.items())]
