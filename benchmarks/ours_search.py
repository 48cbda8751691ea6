# ruff: noqa: E402
"""The search of this package, as `benchmarks/pairing.py` measures it; and the vectors that all are measured on.

python benchmarks/ours_search.py prepare FILE.npy [COUNT WIDTH]
python benchmarks/ours_search.py search FILE.npy bucketed|scann|exact
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # the same vectors and the same stopwatch as theirs

from sbp_jax.parallel import machine

machine.prepare()  # as the command line does

import jax
import numpy as np
import pyarrow as pa
import stopwatch
import vectors
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, find, parquet
from sbp_jax.config import MeshShape, Neighbors
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.search import backends
from sbp_jax.search.vectors import Stored

TOP_K, SHARD = 50, 10_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("prepare", "search"))
    parser.add_argument("file", type=Path)
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.file, *map(int, options.rest))
    else:
        print(json.dumps(search(options.file, options.rest[0])))


def prepare(file: Path, count: int = 0, width: int = 0) -> None:
    """Makes what is missing: the vectors, their true neighbours, and an artifact as the embed stage writes it."""
    if not file.exists():
        np.save(file, vectors.clustered(count, width))
    vectors_ND = np.load(file)
    if not vectors.truth_file(file).exists():
        queries_Q, best_QK = vectors.truth(vectors_ND, TOP_K)
        np.savez(vectors.truth_file(file), queries_Q=queries_Q, best_QK=best_QK)
    if _embeddings(file) is None:
        output = Output(_folder(file), Recipe("embed", 1, {}, {}), "embeddings")
        for shard, start in enumerate(range(0, len(vectors_ND), SHARD)):
            part_CD = vectors_ND[start : start + SHARD]
            column = pa.FixedSizeListArray.from_arrays(pa.array(part_CD.ravel()), part_CD.shape[1])
            table = pa.table({"ordinal": np.arange(start, start + len(part_CD)), "embedding": column})
            output.shard(shard, ".parquet", lambda writing, table=table: parquet.write(writing, table))  # type: ignore
        output.finish()
    print(json.dumps({"count": len(vectors_ND), "width": vectors_ND.shape[1]}))


def search(file: Path, backend: str) -> dict[str, Any]:
    """Seconds, recall and memory of one whole search, the reading of the embeddings included."""
    embeddings = _embeddings(file)
    assert embeddings is not None
    mesh, neighbors = build_mesh(MeshShape()), Neighbors(backend, top_k=TOP_K)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        with stopwatch.Whole() as watch:
            stored = Stored(embeddings)
            choice = backends.choose(len(stored), stored.width, neighbors, jax.device_count())
            find_range = backends.start(choice, stored, neighbors, (mesh, mesh), Path(folder))
            watch.built()
            found_NK = np.empty((len(stored), TOP_K), np.int32)
            for start in range(0, len(stored), SHARD):
                stop = min(start + SHARD, len(stored))
                found_NK[start:stop] = find_range(start, stop)[0]
    line = watch.line(raw=4 * len(stored) * stored.width, packages=("sbp_jax", "jax", "scann"))
    settings = {name: choice.settings[name] for name in choice.settings if name != "top_k"}
    return line | {"settings": f"{choice.backend} {settings}"} | vectors.recalls(file, found_NK)


def _folder(file: Path) -> epath.Path:
    return epath.Path(file.parent / f"{file.stem}.embeddings")


def _embeddings(file: Path) -> Artifact | None:
    return find(_folder(file), Recipe("embed", 1, {}, {}).key)


if __name__ == "__main__":
    main()
