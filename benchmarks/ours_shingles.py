"""Our shingles, as `benchmarks/pairing_verification.py` compares them with its peers.

python benchmarks/ours_shingles.py documents_per_second|pairs_per_second

What comes last is one line of JSON.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from etils import epath

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from stopwatch import versions
from windows import documents, pairs, per_second

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution
from sbp_jax.data.boilerplate import own_shingles
from sbp_jax.data.pair_evidence import overlap
from sbp_jax.data.screened import Shingles
from sbp_jax.stages import screen
from sbp_jax.text.shingles import shingles_of, words


def main() -> None:
    texts = documents()
    if sys.argv[1] == "documents_per_second":
        batches = [texts[start : start + screen.BATCH] for start in range(0, len(texts), screen.BATCH)]
        value = per_second(len(texts), lambda: [list(shingles_of(words(batch))) for batch in batches])
    else:
        with tempfile.TemporaryDirectory() as folder:
            value = pairs_per_second(Path(folder), texts)
    print(json.dumps({sys.argv[1]: value, "versions": versions(("numpy",))}))


def pairs_per_second(folder: Path, texts: list[str]) -> float:
    """On the files that the stage `screen` leaves, mapped into memory, as the stage `pairs` compares them."""
    own, own_counts = own_shingles(_output(folder, "scratch"), screened := _screened(folder, texts), common=10)
    shingles = Shingles(screened, own)
    d1_P, d2_P = np.array(pairs()).T
    return per_second(len(d1_P), lambda: overlap(shingles, own_counts, d1_P, d2_P))


def _screened(folder: Path, texts: list[str]) -> Artifact:
    count = len(texts)
    columns = {"ordinal": range(count), "source": ["here"] * count, "text": texts}
    made = []
    for name, table in (("documents", columns), ("splits", {"ordinal": range(count), "split": ["capped"] * count})):
        output = _output(folder, name)
        part = pa.table({key: list(values) for key, values in table.items()})
        output.shard(0, ".parquet", lambda writing, part=part: parquet.write(writing, part))
        made.append(output.finish())
    config = {"evaluations": screen.Evaluations(), "execution": Execution()}
    return screen.run(_output(folder, "screened"), documents=made[0], splits=made[1], **config)


def _output(folder: Path, name: str) -> Output:
    return Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)


if __name__ == "__main__":
    main()
