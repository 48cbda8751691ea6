"""The same search with an index of faiss: tuned with `--tune`, then measured with what that found.

python faiss_search.py FILE.npy flat|pq|hnsw SETTINGS.json [--tune]
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import stopwatch
import vectors

TOP_K, WANTED, THREADS = 50, 0.97, 2
BATCH = 20_000
LARGE = 500_000  # vectors from which on building an index takes minutes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("index", choices=("flat", "pq", "hnsw"))
    parser.add_argument("settings", type=Path)
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    faiss.omp_set_num_threads(THREADS)
    if options.tune:
        tuned = tune(options.file, options.index)
        options.settings.write_text(json.dumps(tuned))
        print(json.dumps(tuned))
        return
    tuned = json.loads(options.settings.read_text())
    vectors_ND = np.load(options.file)
    with stopwatch.Whole() as watch:
        index = build(vectors_ND, tuned["spec"], tuned["rounds"])
        watch.built()
        configure(index, tuned["search"])
        found_NK = search(index, vectors_ND)
    line = watch.line(raw=vectors_ND.nbytes, packages=("faiss-cpu", "numpy"), given=vectors_ND.nbytes)
    print(json.dumps(line | {"settings": json.dumps(tuned)} | vectors.recalls(options.file, found_NK)))


def grid(kind: str, n: int, width: int) -> tuple[list[tuple[str, int]], list[dict[str, int]]]:
    """Indexes, each with rounds of k-means, and settings of their search, the cheapest first."""
    lists = [2 ** round(math.log2(factor * math.sqrt(n))) for factor in (1.5, 3, 6)]
    if n > LARGE:  # what won with fewer vectors, in more lists
        lists = lists[1:2] if kind == "pq" else lists[1:]
    if kind == "flat":
        searches = [{"nprobe": probes} for probes in (6, 8, 12, 16, 24, 32, 48, 64)]
        return [
            (f"IVF{count},Flat", rounds) for count in lists for rounds in ((4,) if n > LARGE else (4, 10))
        ], searches
    if kind == "pq":
        searches = [{"nprobe": p, "k_factor_rf": k} for k in (4, 8, 16) for p in (24, 32, 48, 64)]
        codes = [f"PQ{width // 2}x4fsr"] + ([f"PQ{width // 4}x4fsr", "SQ8"] if n <= LARGE else [])
        return [(f"IVF{count},{code},RFlat", 10) for count in lists[:2] for code in codes], searches
    sizes = (24,) if n > LARGE else (24, 32)
    return [(f"HNSW{size},Flat", 0) for size in sizes], [{"efSearch": ef} for ef in (52, 64, 96, 128, 192)]


def tune(file: Path, kind: str) -> dict[str, Any]:
    """The settings of the grid that reach the wanted recall in the least time, by that of the sampled queries."""
    vectors_ND = np.load(file)
    indexes, searches = grid(kind, *vectors_ND.shape)
    best: dict[str, Any] = {"seconds": math.inf}
    for spec, rounds in indexes:
        start = time.perf_counter()
        index = build(vectors_ND, spec, rounds)
        built = time.perf_counter() - start
        for chosen in searches:
            configure(index, chosen)
            sample_Q = np.linspace(0, len(vectors_ND) - 1, 4 * vectors.AUDITED).astype(np.int64)
            start = time.perf_counter()
            index.search(vectors_ND[sample_Q], TOP_K + 1)
            seconds = built + (time.perf_counter() - start) * len(vectors_ND) / len(sample_Q)
            audited = partial(search, index, vectors_ND)
            if vectors.recalls(file, None, audited)["recall@10"] < WANTED:
                continue
            if seconds < best["seconds"]:
                best = {"spec": spec, "rounds": rounds, "search": chosen, "seconds": seconds}
            if kind != "pq":
                break  # the next ones of the grid are slower
        if "spec" not in best:  # the most thorough there is
            best |= {"spec": spec, "rounds": rounds, "search": searches[-1]}
    return best


def build(vectors_ND: np.ndarray, spec: str, rounds: int) -> Any:
    index = faiss.index_factory(vectors_ND.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
    if rounds:
        faiss.extract_index_ivf(index).cp.niter = rounds
    index.train(vectors_ND)
    index.add(vectors_ND)
    return index


def configure(index: Any, chosen: dict[str, int]) -> None:
    for name, value in chosen.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)


def search(index: Any, vectors_ND: np.ndarray, queries_Q: np.ndarray | None = None) -> np.ndarray:
    """Indices of the nearest others, int32 [Q, TOP_K]; the query is dropped, wherever it stands."""
    queries_Q = np.arange(len(vectors_ND)) if queries_Q is None else queries_Q
    found_QK = np.empty((len(queries_Q), TOP_K), np.int32)
    for start in range(0, len(queries_Q), BATCH):
        asked_Q = queries_Q[start : start + BATCH]
        _, indices_QK = index.search(vectors_ND[asked_Q], TOP_K + 1)
        own_QK = indices_QK == asked_Q[:, None]
        own_QK[~own_QK.any(axis=1), -1] = True
        found_QK[start : start + BATCH] = indices_QK[~own_QK].reshape(len(asked_Q), TOP_K)
    return found_QK


if __name__ == "__main__":
    main()
