"""Which texts of an artifact have shingles of some documents: passages that a model has learned by heart, or was given.

Legend: n shingles of all documents together, m shingles of a batch of texts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sbp_jax.artifacts import Artifact
from sbp_jax.progress import progress
from sbp_jax.text.shingles import WORDS, Words, rolled, shingles, words

READ = 512  # texts read at a time


def quoting(artifact: Artifact, documents: Mapping[int, str], prefix: str = "part") -> Iterator[dict[str, Any]]:
    """The rows of an artifact whose text shares a shingle of 13 words with a document; a shorter document has none.

    Args:
      documents: texts by ordinal.

    Yields:
      `id`, `ordinal` and, where there is one, `verdict` of a row, with `shared`: shingles by ordinal of the document.
    """
    found = {ordinal: shingles(text) for ordinal, text in documents.items() if len(words([text]).hashes_W) >= WORDS}
    hashes_n = np.concatenate([np.empty(0, np.uint64), *found.values()])
    owners_n = np.repeat(np.array([*found], np.int64), [len(own) for own in found.values()])
    order = np.argsort(hashes_n, kind="stable")
    hashes_n, owners_n = hashes_n[order], owners_n[order]
    shards = artifact.shards(".parquet", prefix) if len(hashes_n) else []
    with progress(f"quotes in {artifact.path.parent.name}", artifact.rows, "documents") as counter:
        for path in shards:
            with path.open("rb") as stream:
                file = pq.ParquetFile(stream)
                columns = [name for name in ("id", "ordinal", "verdict", "text") if name in file.schema_arrow.names]
                for batch in file.iter_batches(READ, columns=columns):
                    texts = words(batch.column("text").to_pylist())
                    for place, shared in _shared(texts, hashes_n, owners_n).items():
                        row = batch.drop_columns(["text"]).slice(place, 1).to_pylist()[0]
                        yield row | {"shared": shared}
                    counter.advance(batch.num_rows)


def _shared(texts: Words, hashes_n: np.ndarray, owners_n: np.ndarray) -> dict[int, dict[int, int]]:
    """By place of a text and owner, how many of the shingles both have; texts without any are left out."""
    places_m, hashes_m = places_and_hashes(texts, WORDS)
    low = np.searchsorted(hashes_n, hashes_m)
    counts = np.searchsorted(hashes_n, hashes_m, side="right") - low
    hits = np.flatnonzero(counts)
    if len(hits) == 0:
        return {}
    hits = hits[np.unique(np.stack([places_m[hits], low[hits]]), axis=1, return_index=True)[1]]  # each once a text
    found: dict[int, dict[int, int]] = {}
    for hit in hits.tolist():
        shared = found.setdefault(int(places_m[hit]), {})
        for owner in owners_n[low[hit] : low[hit] + counts[hit]].tolist():
            shared[owner] = shared.get(owner, 0) + 1
    return found


def places_and_hashes(texts: Words, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every run of `length` words within a text: the place of the text, int64 [m], and the hash, uint64 [m]."""
    hashes = rolled(texts.hashes_W, length)
    starts = np.arange(len(hashes))
    places = np.searchsorted(texts.offsets, starts, side="right") - 1
    inside = starts + length <= texts.offsets[places + 1]
    return places[inside], hashes[inside]
