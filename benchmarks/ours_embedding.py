# ruff: noqa: E402
"""Documents/s of this package's embedder; `benchmarks/pairing_embedding.py` runs it in turns with its peer.

python benchmarks/ours_embedding.py [--dtype bfloat16]
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # the same texts and the same stopwatch as theirs

from texts import texts, use_two_cores

use_two_cores()

from sbp_jax.parallel import machine

machine.prepare()  # as the command line does

import numpy as np
from stopwatch import versions

from sbp_jax.config import Embedding, Execution, MeshShape
from sbp_jax.embedding import models
from sbp_jax.parallel.mesh import build_mesh


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=640)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--vectors", type=Path, help="a .npy to write")
    options = parser.parse_args()
    documents, batch = texts(options.documents), Execution().embed_batch
    embedder = models.load(Embedding(dtype=options.dtype), build_mesh(MeshShape()))
    embedder.embed(documents, batch)  # compiles for the lengths there are
    wall, cpu = time.perf_counter(), time.process_time()
    vectors = embedder.embed(documents, batch)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    if options.vectors:
        np.save(options.vectors, vectors)
    line = {
        "documents_per_second": len(documents) / seconds,
        "documents_per_cpu_second": len(documents) / cpu_seconds,
        "versions": versions(("sbp_jax", "jax")),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
