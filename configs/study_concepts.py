"""The study in a world whose truth is known: documents that tell facts of latent concepts (docs/study.md).

`sbp study configs/study_concepts.py --workdir FOLDER --records docs/study/concepts.jsonl --seeds 0,1,2,3,4` writes the
world of each seed and runs all settings. For one run of the pipeline with its report:

    python -m sbp_jax.study.concepts --to data/concepts --concepts 200 --facts 8 --restated 1 --capped 3 --oracle 97
    sbp run configs/study_concepts.py
"""

from pathlib import Path

import quickstart

from sbp_jax.arms import standard_arms
from sbp_jax.config import (
    Arm,
    Corpus,
    Embedding,
    Evaluation,
    Experiment,
    Model,
    Neighbors,
    Pairs,
    Splits,
    Synthesis,
    TextSet,
    Tokenizer,
    Training,
    Tuning,
)
from sbp_jax.experiments import shrink
from sbp_jax.study.concepts import NOISES
from sbp_jax.study.grid import Setting, repetition_grid

FOLDER = Path(__file__).parent.parent / "data/concepts"
WORLD = {"concepts": 200, "facts": 8, "values": 20, "told": 4, "restated": 1, "capped": 3, "oracle": 97}


EARLY = 16.0  # passes
SHARES = (0.125, 0.25, 0.5, 0.75)  # beside that of the paper
MAIN = ("repetition", "repetition_early", "sbp", "random_pairs", "self_samples", "oracle")


def get_config() -> Experiment:
    return Experiment(
        name="study-concepts",
        corpus=Corpus(paths=(str(FOLDER / "documents.jsonl"),), split_field="split", tokens=1_150_000),
        splits=Splits(near_duplicate=1.0),
        tokenizer=Tokenizer(vocab_size=1024),
        model=Model(width=128, layers=2, heads=2, kv_heads=1, head_dim=64, ffn=384),
        # The weight decay is the best of the grid for repetition, and that of all arms.
        training=Training(context=256, batch_rows=4, peak_lr=4e-3, weight_decay=0.8, evaluate_every=100),
        embedding=Embedding(whiten=True),
        neighbors=Neighbors("exact", top_k=20),
        pairs=Pairs(threshold=0.24, near_duplicate=1.0, minimum=100),
        tuning=Tuning(context=256, batch_rows=8, peak_lr=1e-3, epochs=2.0, evaluate_every=10),
        synthesis=Synthesis(max_new_tokens=160, oversample=1.6),
        evaluation=Evaluation(texts=tuple(_asked(name) for name in ("facts", "recall")), rows_while_training=24),
        arms=(
            Arm("repetition"),
            Arm("repetition_early", epochs=EARLY),  # the best of the grid on all tokens; the other one is on facts
            *standard_arms(0.375, "sbp", "random_pairs", "self_samples", "oracle"),
            Arm("sbp_early_base", synthetic_share=0.375, base="repetition_early"),
            *(Arm(f"sbp_{share:g}", synthetic_share=share) for share in SHARES),
        ),
    )


def _asked(name: str) -> TextSet:
    return TextSet(name, (str(FOLDER / f"{name}.jsonl"),), given="{given}", text="{value}")


def tiny() -> Experiment:
    return shrink(get_config(), quickstart.WIKIPEDIA)


COPIES = ("max_copied", "max_seed_overlap", "near_sibling", "near_duplicate", "max_repetition")
GAP = ("repetition", "repetition_early", "sbp", "oracle")
COMPARED = ("sbp", "random_pairs")  # as many pairs, and as many steps of tuning


def _documents(number: int) -> Setting:
    """Another number of capped documents of a concept, under the same budget; early repetition has as many steps."""
    world = {"capped": number, "oracle": WORLD["capped"] + WORLD["oracle"] - number}
    sets = (f"arms={','.join(GAP)},random_pairs", f"arms.repetition_early.epochs={EARLY * WORLD['capped'] / number}")
    return Setting(f"documents/{number}", sets, world=world)


def _synthetic(name: str, *sets: str, arms: tuple[str, ...] = ("sbp",)) -> Setting:
    """Other synthetic text; the arms that it is compared with are those of "main"."""
    return Setting(name, (f"arms={','.join(GAP)},random_pairs", *sets), arms)


def _pairs(name: str, threshold: float, *sets: str) -> Setting:
    """Other pairs, and random ones beside them; other embeddings have another scale of similarities."""
    return _synthetic(name, f"pairs.threshold={threshold}", *sets, arms=COMPARED)


VECTORS = "embedding.vectors={{world}}/vectors-{:g}.parquet"
SETTINGS = (
    *repetition_grid((0.1, 0.4, 0.8, 3.2), (16, None)),
    *repetition_grid((0.4, 0.8), (12,)),
    *repetition_grid((1.6,), (None,)),
    *repetition_grid((0.8,), (16, None), (0.1,)),
    Setting("main", (f"arms={','.join(MAIN)}",)),
    Setting("share", arms=tuple(f"sbp_{share:g}" for share in SHARES)),
    *(_documents(number) for number in (2, 6)),
    *(_pairs(f"threshold/{least}", least) for least in (0.16, 0.35)),
    _pairs("embedder/plain", 0.65, "embedding.whiten=false"),
    _pairs("embedder/self", 0.4, "embedding.model=self"),
    # Exact pairs, and pairs as wrong as one wants.
    *(_pairs(f"noise/{share:g}", 0.72, "embedding.whiten=false", VECTORS.format(share)) for share in NOISES),
    *(_synthetic(f"epochs/{passes}", f"tuning.epochs={passes}") for passes in (0.5, 8)),
    Setting("base/early", (f"arms={','.join(GAP)},sbp_early_base",), ("sbp_early_base",)),
    _synthetic("base/last", "training.evaluate_every=1000"),  # which has learned the capped documents by heart
    _synthetic("filters/none", *(f"filters.{name}=1" for name in COPIES)),
    *(_synthetic(f"temperature/{value}", f"synthesis.temperature={value}") for value in (0.5, 0.8, 1.3)),
)
