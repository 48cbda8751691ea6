"""What a document costs a model that has read a related one, an unrelated one or nothing, beside what it must cost.

If d1 and d2 have one concept, P(d2 | d1) = sum over c of P(d2 | c) P(c | d1). A name tells the concept, so a reader who
knows the world pays the entropy of d2 given c; one who knows the grammar but no fact pays more for each fact that d1
does not tell.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import Experiment
from sbp_jax.data.packing import pack_groups
from sbp_jax.model import huggingface
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.study.world import World
from sbp_jax.text.tokenizer import load
from sbp_jax.training.evaluation import target_losses
from sbp_jax.training.export import BEST
from sbp_jax.training.step import Setup


def costs(
    experiment: Experiment,
    world: World,
    documents: Artifact,
    splits: Artifact,
    tokenizer: Artifact,
    base: Artifact,
    synthesizer: Artifact,
) -> dict[str, float]:
    """Mean nats of a test document, its end included, that nobody was trained on.

    Returns:
      alone: of the base model, which reads nothing; after_other: of the synthesizer behind a test document of another
      concept; after_related: behind one of the same; newcomer: of a reader of the related document who knows the
      grammar and no other fact; entropy: of P(d2 | c).
    """
    test_rows = parquet.read(splits, ["ordinal", "split"]).to_pylist()
    test = {row["ordinal"] for row in test_rows if row["split"] == "test"}
    rows = parquet.read(documents, ["ordinal", "source", "text"]).to_pylist()
    chosen = sorted((row["source"], row["ordinal"], row["text"]) for row in rows if row["ordinal"] in test)
    concepts = [[text for _, _, text in group] for _, group in groupby(chosen, key=lambda row: row[0])]
    related = [
        (first, second) for texts in concepts for first, second in zip(texts, texts[1:] + texts[:1], strict=True)
    ]
    other = [first for texts in concepts[1:] + concepts[:1] for first in texts]
    d1, d2 = [pair[0] for pair in related], [pair[1] for pair in related]
    told = [{fact.attribute for fact in world.stated(text)} for text in d1]
    unknown = [
        len({fact.attribute for fact in world.stated(text)} - known) for text, known in zip(d2, told, strict=True)
    ]
    return {
        "alone": _mean(experiment, tokenizer, base, [()] * len(d2), d2),
        "after_other": _mean(experiment, tokenizer, synthesizer, [(text,) for text in other[: len(d2)]], d2),
        "after_related": _mean(experiment, tokenizer, synthesizer, [(text,) for text in d1], d2),
        "newcomer": world.entropy + float(np.mean(unknown)) * math.log(world.rules.values),
        "entropy": world.entropy,
    }


def _mean(
    experiment: Experiment, tokenizer: Artifact, trained: Artifact, read: list[Sequence[str]], targets: list[str]
) -> float:
    """Mean nats of the targets under a model that reads those texts before them."""
    encode = load(tokenizer.file("tokenizer.json"), experiment.tokenizer)
    groups = [
        (place, encode.encode_batch(list(texts)), encode.encode_batch([target])[0])
        for place, (texts, target) in enumerate(zip(read, targets, strict=True))
    ]
    longest = max(sum(map(len, texts)) + len(target) + len(texts) + 1 for _, texts, target in groups)
    tuning = replace(experiment.tuning, context=max(longest, experiment.tuning.context))
    rows = list(pack_groups(groups, tuning.context, encode.end_of_document, encode.separator))
    mesh, folder = build_mesh(experiment.execution.mesh), trained.folder(BEST)
    vocabulary = huggingface.inspect(folder).vocabulary
    parameters = huggingface.load(folder, experiment.model, vocabulary, mesh)
    setup = Setup(experiment.model, vocabulary, tuning, 0, 1, mesh, experiment.execution)
    return math.fsum(float(nats.sum()) for _, nats in target_losses(setup, parameters, rows)) / len(targets)
