"""The real documents nearest to a text: by the runs of words they share, and by meaning.

By words every document of the corpus is read, in batches, and counts are exact. By meaning the vectors of the capped
set are read, in blocks, and compared with the one that the experiment's own embedder gives the text.

Legend: Q texts, C vectors of one block, D width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact
from sbp_jax.embedding import models
from sbp_jax.embedding.embedder import Embedder
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.progress import progress
from sbp_jax.report.examples import RUN
from sbp_jax.report.quotes import READ, places_and_hashes
from sbp_jax.report.trail import Trail
from sbp_jax.search.vectors import Stored
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.text.shingles import WORDS, shingles, words
from sbp_jax.training.export import BEST

LENGTHS = (WORDS, RUN)  # words a shingle: the long ones decide, the short ones where the long ones are equal


def by_words(documents: Artifact, texts: Sequence[str]) -> list[dict[str, Any] | None]:
    """The real document that has most shingles of each text: of 13 words, and among equals of 5; the first one on ties.

    Returns:
      None where no document shares a run of 5 words; else `ordinal`, and `shared` and `shingles`: by words a shingle,
      how many of the text's the document has, and how many the text has. A shorter text is one shingle of its words.
    """
    sizes = [len(words([text]).hashes_W) for text in texts]
    sought = [
        [(min(length, size), shingles(text, length)) for length in LENGTHS]
        for text, size in zip(texts, sizes, strict=True)
    ]
    lengths = {length for wanted in sought for length, own in wanted if len(own)}
    best, nearest = np.zeros((len(texts), len(LENGTHS)), np.int64), [-1] * len(texts)
    with progress("nearest by words", documents.rows, "documents") as counter:
        for path in documents.shards(".parquet"):
            with path.open("rb") as stream:
                for batch in pq.ParquetFile(stream).iter_batches(READ, columns=["ordinal", "text"]):
                    found = words(batch.column("text").to_pylist())
                    runs = {length: places_and_hashes(found, length) for length in lengths}
                    for place, wanted in enumerate(sought):
                        if sizes[place] == 0:
                            continue
                        counts = np.stack(
                            [_shared(runs[length], own, batch.num_rows) for length, own in wanted], axis=1
                        )
                        first = np.lexsort((np.arange(len(counts)), *(-counts.T[::-1])))[0]
                        if tuple(counts[first]) > tuple(best[place]):
                            best[place], nearest[place] = counts[first], batch.column("ordinal")[int(first)].as_py()
                    counter.advance(batch.num_rows)
    told: list[dict[str, Any] | None] = []
    for place, ordinal in enumerate(nearest):
        shared = dict(zip(LENGTHS, best[place].tolist(), strict=True))
        own_counts = {length: len(own) for length, (_, own) in zip(LENGTHS, sought[place], strict=True)}
        told.append(None if ordinal < 0 else {"ordinal": ordinal, "shared": shared, "shingles": own_counts})
    return told


def _shared(runs: tuple[np.ndarray, np.ndarray], own: np.ndarray, texts: int) -> np.ndarray:
    """How many of the shingles `own` each of the texts has, of which `runs` are the places and hashes of all runs."""
    places, hashes = runs
    at = np.minimum(np.searchsorted(own, hashes), len(own) - 1)
    hits = np.flatnonzero(own[at] == hashes)
    pairs = np.unique(places[hits] * len(own) + at[hits])
    return np.bincount(pairs // len(own), minlength=texts)


def by_meaning(trail: Trail, texts: Sequence[str], read: Sequence[Sequence[int]]) -> tuple[list[dict[str, Any]], str]:
    """The capped document whose vector is nearest to that of each text.

    Args:
      read: for each text the ordinals of documents whose similarity to it is told as well.

    Returns:
      For each text `ordinal`, `similarity` and `read`, similarities by ordinal; or nothing, and the reason why.
    """
    embedder = _embedder(trail)
    if isinstance(embedder, str):
        return [], embedder
    (name,) = trail.of_stage("embed")
    stored = Stored(trail.artifact(name))
    queries_QD = embedder.embed(texts, min(trail.experiment.execution.embed_batch, len(texts)))
    best, nearest = np.full(len(texts), -np.inf, np.float32), np.zeros(len(texts), np.int64)
    with progress("nearest by meaning", len(stored), "documents") as counter:
        for first, vectors_CD in stored.blocks():
            scores_QC = queries_QD @ vectors_CD.T
            places = scores_QC.argmax(axis=1)
            scores = scores_QC[np.arange(len(texts)), places]
            nearest = np.where(scores > best, first + places, nearest)
            best = np.maximum(best, scores)
            counter.advance(len(vectors_CD))
    told = []
    for place in range(len(texts)):
        own = np.unique(np.array(read[place], np.int64))
        at = np.minimum(np.searchsorted(stored.ordinals, own), len(stored) - 1)
        at = at[stored.ordinals[at] == own]  # only the capped set has vectors
        similar = dict(zip(stored.ordinals[at].tolist(), (stored.take(at) @ queries_QD[place]).tolist(), strict=True))
        ordinal = int(stored.ordinals[nearest[place]])
        told.append({"ordinal": ordinal, "similarity": float(best[place]), "read": similar})
    return told, ""


def _embedder(trail: Trail) -> Embedder | str:
    """The model that made the vectors, or the reason why there is none."""
    experiment, (name,) = trail.experiment, trail.of_stage("embed")
    embedding, inputs = experiment.embedding, trail.nodes[name].inputs
    if embedding.vectors is not None:
        return "the vectors are the user's own (embedding.vectors), without the model that made them"
    if embedding.whiten:
        return "the vectors are whitened (embedding.whiten), and how is not kept"
    if trail.find(name) is None:
        return f"{name} is not complete; run `sbp run ... --until {name}`"
    mesh = one_host_mesh(experiment.execution.mesh)
    try:
        if embedding.model != models.SELF:
            return models.load(embedding, mesh, experiment.execution.attention)
        base, tokenizer = trail.artifact(inputs["base"]), trail.artifact(inputs["tokenizer"])
        own = text_tokenizer.load(tokenizer.file("tokenizer.json"), trail.nodes[name].config["settings"])
        return models.load_base(base.folder(BEST), own, experiment.model, embedding, mesh)
    except SbpError as error:  # the rest can be told without it
        return str(error)
