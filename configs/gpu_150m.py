"""The whole method on one GPU: 149 million parameters, each arm pretrained on as many tokens as the corpus has.

Give a corpus of about 3 billion tokens, text of the web for example, with the names of its fields:

    launch/gpu.sh configs/gpu_150m.py --set 'corpus.paths=/data/web/*.parquet' --set corpus.text_field=text

As in the paper, the capped set is a twentieth of what the oracle sees, and the budget is one pass over the oracle's:
`repetition` reads the capped set 20 times whatever the size of the corpus. A larger corpus is cut by
`--set corpus.sample=0.1`; `corpus.tokens` is no limit, it is what `sbp config` reckons with.

What it takes, estimated and not measured: 3B tokens are 20 for each parameter. Training takes 1.0 GFLOP a token, so
that an H100 (989 TFLOP/s in bfloat16) at 30% of its peak does 300,000 tokens a second: 2.8 hours an arm, 14 for five.
The synthesizer writes 1.4B tokens (a share of 37.5%, a fifth of it lost to the filters): 13 hours at 30,000 tokens a
second, and as long again for each of the two controls. `--set arms=repetition,sbp,oracle` leaves them out; the other
standard arms can be named there too (docs/arms.md). Pieces of 32 rows, whose logits are 4.3 GB, are meant for 80 GB; on
24 GB give

    --set execution.accumulate=64 --set execution.slots=64
"""

from dataclasses import replace

from quickstart import WIKIPEDIA

from sbp_jax.arms import standard_arms
from sbp_jax.config import (
    Corpus,
    Execution,
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


def get_config() -> Experiment:
    return Experiment(
        name="gpu_150m",
        corpus=Corpus(paths=("corpus",), tokens=3_000_000_000),  # a folder of JSON Lines or Parquet
        splits=Splits(validation=0.001, test=0.002, capped=0.05, oracle=1.0),
        tokenizer=Tokenizer(vocab_size=32_768),
        model=Model(width=768, layers=18, heads=12, kv_heads=4, head_dim=64, ffn=2304, dtype="bfloat16"),
        training=Training(
            context=1024,
            batch_rows=512,  # half a million tokens
            peak_lr=3e-3,
            final_lr=3e-5,
            evaluate_every=250,
        ),
        # The pairs of a capped set fall with the square of its size, so that the threshold is below the paper configs'.
        neighbors=Neighbors(top_k=50),
        pairs=Pairs(threshold=0.65, minimum=10_000),
        tuning=Tuning(
            context=2048,  # two documents of 1024 tokens
            batch_rows=128,
            peak_lr=3e-4,
            final_lr=3e-6,
            epochs=1.0,
            evaluate_every=100,
        ),
        synthesis=Synthesis(temperature=1.0, top_p=0.9, max_new_tokens=1024, oversample=1.25, documents_per_shard=8192),
        arms=standard_arms(0.375, "repetition", "sbp", "oracle", "random_pairs", "self_samples"),
        note=(
            "One GPU and 149 million parameters, where the paper's smallest model has 3 billion. The repetition is the"
            " paper's: 20 times a twentieth. One seed says little where the arms lie close together."
        ),
        execution=Execution(remat="dots", accumulate=16, embed_batch=256, slots=512),
    )


def tiny() -> Experiment:
    experiment = shrink(get_config(), WIKIPEDIA)
    return replace(experiment, execution=replace(experiment.execution, accumulate=2, embed_batch=32))  # of 8 rows
