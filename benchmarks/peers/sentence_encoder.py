# ruff: noqa: E402
"""Documents/s of sentence-transformers, as `benchmarks/pairing_embedding.py` compares them with ours.

    .venv-peers/torch/bin/python benchmarks/peers/sentence_encoder.py FOLDER [--dtype bfloat16]

FOLDER holds the model. What comes last is one line of JSON.
"""

import argparse
import json
import time
from pathlib import Path

from texts import CORES, texts, use_two_cores

use_two_cores()

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from stopwatch import versions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--documents", type=int, default=640)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--vectors", type=Path, help="a .npy to write")
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    documents = texts(options.documents)
    model = SentenceTransformer(options.folder, device="cpu", model_kwargs={"dtype": getattr(torch, options.dtype)})
    model.encode(documents[:64])
    wall, cpu = time.perf_counter(), time.process_time()
    vectors = model.encode(documents, normalize_embeddings=True)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    if options.vectors:
        np.save(options.vectors, vectors.astype(np.float32))
    line = {
        "documents_per_second": len(documents) / seconds,
        "documents_per_cpu_second": len(documents) / cpu_seconds,
        "versions": versions(("torch", "sentence-transformers")),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
