"""Scores: held-out loss against what arithmetic says."""

import math

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, Model, Training
from sbp_jax.data.held_out import entries
from sbp_jax.data.rows import write_rows
from sbp_jax.data.screened import save
from sbp_jax.data.windows import pack_windows, windows
from sbp_jax.model import huggingface
from sbp_jax.model.decoder import Decoder
from sbp_jax.stages import score

MODEL = Model(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)
VOCABULARY, CONTEXT = 128, 16
LENGTHS, BYTES = (3, 40, 1, 25), (20, 300, 80, 100)  # tokens and bytes of each document; some take several rows


def output(folder: epath.Path, name: str) -> Output:
    return Output(folder / name, Recipe(name, 1, {}, {}), name)


def scored(folder: epath.Path, scale: float) -> Artifact:
    """The test set scored by a random model whose weights are multiplied by `scale`; at 0 it guesses at random."""
    weights = jax.tree.map(
        lambda leaf: scale * leaf, nnx.to_pure_dict(nnx.state(Decoder(MODEL, VOCABULARY, nnx.Rngs(0))))
    )
    trained = output(folder, "trained")
    for name in huggingface.save(trained.path / "final", weights, MODEL, VOCABULARY, CONTEXT, 0):
        with trained.writing(f"final/{name}"):
            pass
    test = output(folder, "test")
    random = np.random.default_rng(0)
    save(test, "documents-00000.npy", entries(np.arange(len(LENGTHS)), [length + 1 for length in LENGTHS], BYTES))
    documents = [random.integers(1, VOCABULARY, length) for length in LENGTHS]
    found = (window for place, text in enumerate(documents) for window in windows(place, text, CONTEXT, CONTEXT, 0))
    totals = write_rows(test, pack_windows(found, CONTEXT, 0))
    training = Training(batch_rows=4, context=CONTEXT)
    inputs = {"trained": trained.finish(), "rows": test.finish(totals)}
    return score.run(output(folder, "score"), **inputs, model=MODEL, training=training, execution=Execution())


def test_a_model_that_guesses_scores_the_logarithm_of_the_vocabulary(tmp_path):
    """Guards what is summed: each token and each end of a document once, padding never."""
    artifact = scored(epath.Path(tmp_path), scale=0.0)
    targets = sum(LENGTHS) + len(LENGTHS)
    assert artifact.stats["targets"] == targets
    assert artifact.stats["nats_per_token"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert artifact.stats["bits_per_byte"] == pytest.approx(math.log2(VOCABULARY) * targets / 500, rel=1e-6)
    assert artifact.stats["perplexity"] == pytest.approx(VOCABULARY, rel=1e-5)
    rows = parquet.read(artifact).to_pylist()
    expected = [(place, length + 1, size) for place, (length, size) in enumerate(zip(LENGTHS, BYTES, strict=True))]
    assert [(row["ordinal"], row["targets"], row["bytes"]) for row in rows] == expected
    for row in rows:
        assert row["nats"] == pytest.approx(math.log(VOCABULARY) * row["targets"], rel=1e-5)


def test_documents_add_up_to_the_total(tmp_path):
    artifact = scored(epath.Path(tmp_path), scale=20.0)
    rows = parquet.read(artifact).to_pylist()
    total = sum(row["nats"] for row in rows)
    assert total / artifact.stats["targets"] == pytest.approx(artifact.stats["nats_per_token"])
    assert artifact.stats["nats_per_token"] > math.log(VOCABULARY) + 0.1, "a confident model without a clue is worse"
