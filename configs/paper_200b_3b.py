"""SBP at the paper's first scale: 10B unique tokens, 200B training tokens, a 3B model (arXiv 2509.15248).

Numbers marked "paper" are the paper's; those marked "ours" were not found in it. Give your own corpus:
`--set corpus.paths=...`.
"""

from quickstart import WIKIPEDIA

from sbp_jax.config import (
    Arm,
    Corpus,
    Experiment,
    Model,
    Neighbors,
    Pairs,
    Splits,
    Synthesis,
    Tokenizer,
    Training,
    Tuning,
)
from sbp_jax.experiments import shrink

DCLM = Corpus(
    paths=("dclm",),  # a folder of JSON Lines or Parquet
    tokens=482_000_000_000,  # paper
)
MODEL_3B = Model(  # paper: a 3B Llama-3 decoder with QK-norm; the sizes are ours
    width=3072,
    layers=26,
    heads=24,
    kv_heads=8,
    head_dim=128,
    ffn=8064,
    rope_base=500_000.0,
    tied_embeddings=False,
    dtype="bfloat16",
)


def splits(unique_tokens: float, oracle_tokens: float) -> Splits:
    """The capped and the oracle set as fractions of DCLM."""
    held_out = 2 * 0.00005  # ours
    training = DCLM.tokens * (1 - held_out)
    return Splits(
        validation=0.00005, test=0.00005, capped=unique_tokens / training, oracle=min(1.0, oracle_tokens / training)
    )


def arms(synthetic_share: float) -> tuple[Arm, ...]:
    return (Arm("repetition"), Arm("sbp", synthetic_share=synthetic_share), Arm("oracle", real="oracle"))


def get_config() -> Experiment:
    return Experiment(
        name="paper_200b_3b",
        corpus=DCLM,
        splits=splits(10e9, 200e9),  # paper
        tokenizer=Tokenizer(vocab_size=49_152),  # ours
        model=MODEL_3B,
        training=Training(
            tokens=200_000_000_000,  # paper
            context=4096,  # paper
            batch_rows=2048,  # paper
            peak_lr=1e-2,  # paper
            final_lr=5e-5,  # paper
            warmup=0.05,  # paper
            weight_decay=0.1,  # ours
            evaluate_every=1000,  # ours
        ),
        neighbors=Neighbors(top_k=200),  # ours
        pairs=Pairs(threshold=0.75),  # ours; the paper embeds with Qwen3-Embedding-0.6B, we with all-MiniLM-L6-v2
        tuning=Tuning(
            context=8192,  # ours: two documents of 4096 tokens
            batch_rows=256,  # ours
            peak_lr=5e-6,  # ours
            final_lr=5e-7,  # ours
            epochs=1.0,  # ours
            evaluate_every=500,  # ours
        ),
        synthesis=Synthesis(temperature=1.0, top_p=0.9, max_new_tokens=4096, oversample=1.2),  # ours
        arms=arms(0.375),  # paper: 75B of 200B tokens
    )


def tiny() -> Experiment:
    return shrink(get_config(), WIKIPEDIA)
