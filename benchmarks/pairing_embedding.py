"""Documents/s of all-MiniLM-L6-v2 on two cores, beside sentence-transformers with the same weights and texts.

    bash benchmarks/peers/setup.sh torch              # once: the peer's environment
    python benchmarks/pairing_embedding.py [--rounds 3]

Every measurement is a process of its own, ours and the peer's taking turns, so that another load on the machine meets
both; that they compute the same is verified at the end.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from train import ROOT, Measured, compare, peer, present

from sbp_jax.model import encoder

FIGURE = "documents_per_second"


def measured() -> list[tuple[str, list[Measured], str]]:
    """A title, ours and the peer, and the figure to compare, for each dtype."""
    script, folder = str(ROOT / "benchmarks" / "ours_embedding.py"), str(encoder.find(encoder.PACKAGED))
    comparisons = []
    for dtype in ("float32", "bfloat16"):
        title = f"Documents/s, all-MiniLM-L6-v2, {dtype}, two cores (ratio: higher is better)"
        ours = Measured("ours", None, (script, "--dtype", dtype))
        theirs = peer("sentence-transf.", "torch", "sentence_encoder.py", folder, "--dtype", dtype)
        comparisons.append((title, [ours, theirs], FIGURE))
    return comparisons


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for title, both, figure in measured():
        compare(title, both, figure, options.rounds)
        agree(both)


def agree(both: list[Measured]) -> None:
    """Prints the least cosine between the vectors of the two."""
    if not all(map(present, both)):
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{place}.npy" for place in range(len(both))]
        for each, file in zip(both, files, strict=True):
            replace(each, arguments=(*each.arguments, "--vectors", str(file))).run()
        ours, theirs = map(np.load, files)
    print(f"least cosine between them: {np.sum(ours * theirs, axis=1).min():.7f}")


if __name__ == "__main__":
    main()
