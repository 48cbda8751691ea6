"""How related documents are to the ones that they are paired with: by the experiment's embedder, and by their words.

The embedder is the one that found the pairs. Where the vectors are the user's own there is none for new text, and
words alone are compared.

Legend: P pairs, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sbp_jax.artifacts import Artifact
from sbp_jax.config import Embedding, Execution, Model, Tokenizer
from sbp_jax.embedding import models
from sbp_jax.embedding.embedder import Embedder
from sbp_jax.embedding.whitening import Whitening
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.search.vectors import Stored
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.text.shingles import distinct
from sbp_jax.training import export

QUANTILE = 0.95  # of random pairs, above which two documents count as related
FEWEST = 20  # random pairs below which there is no such quantile
WHITENING = 4096  # documents that whitening is fitted to
BIN = 0.05  # of a histogram of distances


@dataclass(frozen=True)
class Source:
    """Where vectors come from.

    Attributes:
      embedder: the model that made the stored ones; None where they are the user's own.
      embeddings: the vectors of the capped documents.
      whitening: texts of capped documents to fit the map by which they were whitened; None where they were not.
      batch: documents embedded at a time.
    """

    embedder: Embedder | None
    embeddings: Artifact
    whitening: Sequence[str] | None
    batch: int


def source(
    embeddings: Artifact,
    tokenizer: Artifact,
    base: Artifact | None,
    embedding: Embedding,
    model: Model | None,
    settings: Tokenizer,
    execution: Execution,
    sample: Callable[[int], Sequence[str]],
) -> Source:
    """The embedder of the experiment.

    Args:
      sample: gives texts of at most so many capped documents.
      tokenizer, base, model, settings: of the base model, where it is the embedder.

    Raises:
      SbpError: its files are missing or damaged.
    """
    found: Embedder | None = None
    if embedding.vectors is None:
        mesh = one_host_mesh(execution.mesh)
        if embedding.model == models.SELF:
            assert base is not None and model is not None
            own = text_tokenizer.load(tokenizer.file("tokenizer.json"), settings)
            found = models.load_base(base.folder(export.BEST), own, model, embedding, mesh, execution.attention)
        else:
            found = models.load(embedding, mesh, execution.attention)
    whitening = sample(WHITENING) if embedding.whiten and found is not None else None
    return Source(found, embeddings, whitening, execution.embed_batch)


class Vectors:
    """Unit vectors of real documents, as stored, and of new texts.

    Whitened vectors are made again for both, since the map that whitened the stored ones is not kept; another one is
    fitted, to other documents.
    """

    def __init__(self, made: Source, texts: Mapping[int, str], advance: Callable[[int], None]):
        """Args: texts: of the capped documents that will be asked for, by ordinal; advance: told what is embedded."""
        assert made.embedder is not None
        self._embedder, self._batch, self._advance = made.embedder, made.batch, advance
        ordinals = np.array(sorted(texts), np.int64)
        self._places = {ordinal: place for place, ordinal in enumerate(ordinals.tolist())}
        self._whitening: Whitening | None = None
        if made.whitening is not None:
            self._whitening = Whitening.fit(self._embedder.embed(made.whitening, self._batch))
            self._vectors_ND = self._embed([texts[ordinal] for ordinal in ordinals.tolist()])
        else:
            stored = Stored(made.embeddings)
            self._vectors_ND = stored.take(np.searchsorted(stored.ordinals, ordinals))

    def of_real(self, ordinals: Sequence[int]) -> np.ndarray:
        """float32 [P, D]."""
        return self._vectors_ND[[self._places[ordinal] for ordinal in ordinals]]

    def of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [P, D]; equal texts are embedded once."""
        unique = sorted(set(texts))
        where = {text: place for place, text in enumerate(unique)}
        self._advance(len(texts) - len(unique))
        return self._embed(unique, self._advance)[[where[text] for text in texts]]

    def _embed(self, texts: Sequence[str], advance: Callable[[int], None] = lambda documents: None) -> np.ndarray:
        vectors_ND = self._embedder.embed(texts, self._batch, advance)
        return vectors_ND if self._whitening is None else self._whitening(vectors_ND)


def cosines(a_PD: np.ndarray, b_PD: np.ndarray) -> np.ndarray:
    return np.einsum("pd,pd->p", a_PD.astype(np.float64), b_PD.astype(np.float64))


class Vocabulary:
    """Compares texts by the words that they share, each weighted by how rare it is in some real documents.

    The similarity is the cosine of vectors with log((1 + N) / (1 + n)) for each word of a text, n being the documents
    of N that have it: a word of all of them weighs nothing.
    """

    def __init__(self, texts: Sequence[np.ndarray]):
        """Args: hashed words of N real documents."""
        every = np.concatenate([np.empty(0, np.uint64), *map(_once, texts)])
        self._hashes, self._counts = np.unique(every, return_counts=True)
        self._documents = len(texts)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """Of two texts by their hashed words; 0 where one has no word that weighs anything."""
        a, b = _once(a), _once(b)
        norm = float(np.sqrt(np.sum(self._weights(a) ** 2) * np.sum(self._weights(b) ** 2)))
        shared = np.intersect1d(a, b, assume_unique=True)
        return float(np.sum(self._weights(shared) ** 2)) / norm if norm > 0 else 0.0

    def _weights(self, hashes: np.ndarray) -> np.ndarray:
        found = np.zeros(len(hashes))
        if len(self._hashes):
            places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            found = np.where(self._hashes[places] == hashes, self._counts[places], 0)
        return np.log((1 + self._documents) / (1 + found))


def threshold(random_P: np.ndarray) -> float | None:
    """The similarity above which two documents count as related."""
    return float(np.quantile(random_P, QUANTILE)) if len(random_P) >= FEWEST else None


def histograms(kinds: Mapping[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """Distances (1 - cosine) of several kinds of pairs in the same bins."""
    kinds = {name: 1 - similarities for name, similarities in kinds.items() if len(similarities)}
    if not kinds:
        return {}
    every = np.concatenate(list(kinds.values()))
    low, high = np.floor(every.min() / BIN), np.ceil(every.max() / BIN)
    edges = np.arange(low, max(high, low + 1) + 1) * BIN
    return {
        name: {
            "edges": [round(float(edge), 4) for edge in edges],
            "counts": np.histogram(np.clip(distances, edges[0], edges[-1]), edges)[0].tolist(),
            "mean": float(distances.mean()),
        }
        for name, distances in kinds.items()
    }


def _once(hashes: np.ndarray) -> np.ndarray:
    return distinct(np.sort(hashes))
