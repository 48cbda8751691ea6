"""Which documents belong to which split."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, parquet


def members(splits: Artifact, *names: str) -> np.ndarray:
    """Ordinals of the documents in any of the named splits, ascending; the oracle set is "oracle" and "capped"."""
    table = parquet.read(splits, ["ordinal", "split"])
    return table["ordinal"].to_numpy()[np.isin(table["split"].to_numpy().astype(str), names)]


def texts(documents: Artifact, ordinals: np.ndarray) -> Iterator[list[str]]:
    """The texts of these documents, in order, those of one shard at a time."""
    for table in parquet.tables(documents, ["ordinal", "text"]):
        yield table["text"].filter(pa.array(np.isin(table["ordinal"].to_numpy(), ordinals))).to_pylist()
