"""The whole method on one laptop: 10,000 short documents, a model of 0.7 million parameters, five minutes.

Far below the scale at which the paper's effect could show; it is here to be run, read and changed.
"""

from pathlib import Path

from sbp_jax.config import (
    Arm,
    Corpus,
    Experiment,
    Model,
    Neighbors,
    Pairs,
    Quality,
    Splits,
    Synthesis,
    Tokenizer,
    Training,
    Tuning,
)
from sbp_jax.experiments import shrink

WIKIPEDIA = Corpus(paths=(str(Path(__file__).parent.parent / "data/wikipedia_vital/documents.jsonl.gz"),))


def get_config() -> Experiment:
    return Experiment(
        name="quickstart",
        corpus=WIKIPEDIA,
        splits=Splits(validation=0.02, test=0.05, capped=0.15, oracle=0.47),
        tokenizer=Tokenizer(vocab_size=2048),
        model=Model(width=128, layers=2, heads=2, kv_heads=1, head_dim=64, ffn=384),
        training=Training(context=256, batch_rows=4, peak_lr=4e-3, evaluate_every=150),
        neighbors=Neighbors("scann", top_k=20),
        pairs=Pairs(threshold=0.5, minimum=1000),
        tuning=Tuning(context=512, batch_rows=4, peak_lr=1e-3, epochs=1.0, evaluate_every=50),
        synthesis=Synthesis(temperature=1.0, top_p=0.9, max_new_tokens=256, oversample=1.6),
        quality=Quality(documents=250),
        arms=(
            Arm("repetition"),
            Arm("sbp", synthetic_share=0.25),
            Arm("oracle", real="oracle"),
        ),
        note=(
            "This scale is far below what could show the paper's effect: less than a million parameters, and an oracle"
            " with 3 times the data instead of 20. The numbers show that the pipeline works from end to end, not what"
            " synthetic bootstrapped pretraining is worth."
        ),
    )


def tiny() -> Experiment:
    return shrink(get_config(), WIKIPEDIA)
