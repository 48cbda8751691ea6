"""Stage `import_pairs`: the user's own pairs, in the place of a search and in its form."""

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution
from sbp_jax.data import own_pairs
from sbp_jax.search.ranking import FOUND

VERSION = 1
PAIRS_PER_SHARD = 200_000


def run(output: Output, *, documents: Artifact, splits: Artifact, path: str, execution: Execution) -> Artifact:
    """Writes `query`, `neighbor` (ordinals) and `similarity`, ordered by query and falling similarity.

    Raises:
      SbpError: a file that cannot be read, ids that no document has, or no pair of two capped documents.
    """
    found = own_pairs.join(path, documents, splits)
    starts = np.flatnonzero(np.append(True, found.d1[1:] != found.d1[:-1]))  # those of a document stand in one shard
    bounds = [*starts[np.unique(starts // PAIRS_PER_SHARD, return_index=True)[1]].tolist(), len(found.d1)]
    for number, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        rows = slice(start, stop)
        columns = {"query": found.d1[rows], "neighbor": found.d2[rows], "similarity": found.similarity[rows]}

        def write(writing: Writing, columns: dict[str, np.ndarray] = columns) -> None:
            parquet.write(writing, pa.table(columns, schema=FOUND))

        output.shard(number, ".parquet", write)
    reason = f"pairs.path: {len(found.d1):,} pairs of the user's own"
    counts = {"not_capped": found.uncapped, "repeated": found.repeated}
    return output.finish({"backend": "own", "backend_reason": reason} | counts)
