"""The study on real text for one GPU: the same corpus and arms with 20, 60 and 150 million parameters.

It has not been run: no number of docs/study.md comes from it. The data are those of `configs/study_text.py`. The oracle
reads all of the corpus once, the capped set is a twentieth of that, so that repetition reads it 20 times.

sbp study configs/study_text_gpu.py --workdir FOLDER --records docs/study/text_gpu.jsonl --seeds 0,1,2 --settings 20m

Where a command may not take longer than ten minutes, put `timeout 570` before it and repeat it until it ends by itself:
an arm that is scored is a line of the records, and what was under way goes on. The records are all that has to be
brought home; the workdir is needed no longer than a setting with a seed is under way.
"""

from dataclasses import replace

import quickstart
import study_text

from sbp_jax.arms import standard_arms
from sbp_jax.config import Execution, Experiment, Model, Neighbors, Splits, Tokenizer, Training, Tuning
from sbp_jax.experiments import shrink
from sbp_jax.study.grid import Setting, repetition_grid


def get_config() -> Experiment:
    return replace(
        study_text.get_config(),
        name="study-text-gpu",
        splits=Splits(validation=0.003, test=0.01, oracle=0.98, capped=0.049, by="source"),
        tokenizer=Tokenizer(vocab_size=16_384),
        model=Model(width=384, layers=8, heads=6, kv_heads=2, head_dim=64, ffn=1152, dtype="bfloat16"),
        training=Training(context=512, batch_rows=64, peak_lr=4e-3, evaluate_every=50),
        neighbors=Neighbors("exact", top_k=50),
        tuning=Tuning(context=1024, batch_rows=32, peak_lr=1e-3, epochs=2.0, evaluate_every=20),
        execution=Execution(embed_batch=256, slots=256),
    )


def tiny() -> Experiment:
    return shrink(replace(get_config(), arms=standard_arms(0.375, "repetition", "sbp", "oracle")), quickstart.WIKIPEDIA)


SIZES = {  # millions of parameters: width, layers, heads, heads of keys and values, feed-forward width, learning rate
    20: (384, 8, 6, 2, 1152, 4e-3),
    60: (640, 10, 10, 5, 1920, 3e-3),
    150: (768, 18, 12, 4, 2304, 3e-3),
}
FIELDS = ("model.width", "model.layers", "model.heads", "model.kv_heads", "model.ffn", "training.peak_lr")


def _size(millions: int) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in zip(FIELDS, SIZES[millions], strict=True))


SETTINGS = (
    *repetition_grid((0.1, 0.8, 3.2), (5, 10, None)),
    *(Setting(f"{size}m", (f"arms={','.join(study_text.MAIN)}", *_size(size))) for size in SIZES),
    *(Setting(f"{size}m/share", _size(size), tuple(f"sbp_{share:g}" for share in study_text.SHARES)) for size in SIZES),
)
