"""The study on real text at half a million parameters: 20 passes over a capped set of documentation (docs/study.md).

python docs/debian_docs.py --to data/study/debian_docs.jsonl.gz       # from packages of Debian
zcat data/wikipedia_vital/documents.jsonl.gz | awk 'NR % 25 == 0' > data/study/wikipedia.jsonl
sbp study configs/study_text.py --workdir FOLDER --records docs/study/text.jsonl --seeds 0,1,2
"""

from dataclasses import replace
from pathlib import Path

import quickstart

from sbp_jax.arms import standard_arms
from sbp_jax.config import (
    Arm,
    Corpus,
    Evaluation,
    Experiment,
    Filters,
    Model,
    Neighbors,
    Pairs,
    Quality,
    Splits,
    Synthesis,
    TextSet,
    Tokenizer,
    Training,
    Tuning,
)
from sbp_jax.experiments import shrink
from sbp_jax.study.grid import Setting, repetition_grid

DATA = Path(__file__).parent.parent / "data"
# What belongs together is drawn together: packages whose names begin alike, such as libghc-..., and the parts that some
# 4,000 characters of a file are cut into.
FAMILY = r"^debpkg/[^-]+(-[^-]+)?|^[^#]+#\d+"
SHARES = (0.125, 0.25, 0.5, 0.75)  # beside that of the paper
CONTROLS = ("random_pairs", "self_samples", "megadoc", "staged", "in_context", "multi_round")
MAIN = ("repetition", "repetition_early", "sbp", "oracle", *CONTROLS)
FLOPS = ("repetition_flops", "oracle_flops")


def get_config() -> Experiment:
    return Experiment(
        name="study-text",
        corpus=Corpus(
            paths=(str(DATA / "study/debian_docs.jsonl.gz"),),
            source_field="id",
            source_pattern=FAMILY,
            max_characters=600,  # two of them fit a row of the synthesizer
            tokens=35_000_000,
        ),
        splits=Splits(validation=0.003, test=0.01, oracle=0.12, capped=0.006, by="source"),
        tokenizer=Tokenizer(vocab_size=1024),
        model=Model(width=128, layers=2, heads=2, kv_heads=1, head_dim=64, ffn=384),
        # The weight decay is the best of the grid for repetition, and that of all arms.
        training=Training(context=256, batch_rows=4, peak_lr=4e-3, weight_decay=0.8, evaluate_every=200),
        neighbors=Neighbors("exact", top_k=20),
        pairs=Pairs(threshold=0.6, minimum=100),
        tuning=Tuning(context=512, batch_rows=4, peak_lr=1e-3, epochs=2.0, evaluate_every=10),
        synthesis=Synthesis(max_new_tokens=256, oversample=2.0),
        filters=Filters(unfinished="trim"),
        evaluation=Evaluation(texts=(TextSet("wikipedia", (str(DATA / "study/wikipedia.jsonl"),)),)),
        quality=Quality(documents=500),
        arms=(
            Arm("repetition"),
            Arm("repetition_early", epochs=10.0),
            *standard_arms(0.375, "sbp", "oracle", *CONTROLS),
            Arm("repetition_flops", flops_of="sbp"),  # equal operations instead of equal tokens
            Arm("oracle_flops", real="oracle", flops_of="sbp"),
            *(Arm(f"sbp_{share:g}", synthetic_share=share) for share in SHARES),
        ),
    )


def tiny() -> Experiment:
    return shrink(replace(get_config(), arms=standard_arms(0.375, "repetition", "sbp", "oracle")), quickstart.WIKIPEDIA)


SETTINGS = (
    *repetition_grid((0.1, 0.8, 3.2), (5, 10, None)),
    *repetition_grid((0.8,), (10, None), (0.1,)),
    Setting("main", (f"arms={','.join(MAIN)}",)),
    Setting("flops", (f"arms=repetition,sbp,{','.join(FLOPS)}",), FLOPS),
    Setting("share", arms=tuple(f"sbp_{share:g}" for share in SHARES)),
)
