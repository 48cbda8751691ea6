"""A small corpus with synthetic documents, as the artifacts that the stages `quality` and `judge` read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Embedding, Execution, Tokenizer
from sbp_jax.data import synthetic
from sbp_jax.stages import quality as stage
from sbp_jax.text.contamination import Evaluations

SETTINGS = Tokenizer()
OF_THE_USER = Embedding(vectors="vectors.npy")  # so that no model embeds
NO_SETS = Evaluations()


def text(seed: int, length: int = 60, vocabulary: int = 50_000) -> str:
    """Words drawn at random: two texts have no run of words in common but by chance."""
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, vocabulary, length))


def written(path: Path, tables: Sequence[pa.Table], prefix: str = "part", output: Output | None = None) -> Output:
    output = output or Output(epath.Path(path), Recipe(path.name, 1, {}, {}), path.name)
    for index, table in enumerate(tables):
        output.shard(index, ".parquet", lambda writing, t=table: parquet.write(writing, t), prefix)  # type: ignore[misc]
    return output


def _cut(table: pa.Table, shards: int) -> list[pa.Table]:
    bounds = np.linspace(0, table.num_rows, shards + 1).astype(int).tolist()
    return [table.slice(start, stop - start) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


def inputs(
    folder: Path,
    real: Sequence[tuple[str, str]],
    pairs: Sequence[tuple[int, int]],
    made: Sequence[dict[str, Any]],
    shards: int = 1,
) -> dict[str, Artifact]:
    """The artifacts.

    Args:
      real: text and split of each real document.
      pairs: ordinals of d1 and d2 of accepted pairs.
      made: synthetic documents: `text`, `read` (ordinals, the seed last), and perhaps `finish` and `verdict`.
      shards: of every artifact.
    """
    count = len(real)
    columns: dict[str, list] = {"ordinal": list(range(count)), "id": [f"doc-{n}" for n in range(count)]}
    columns |= {"source": ["here"] * count, "text": [own for own, _ in real]}
    splits = pa.table({"ordinal": list(range(count)), "split": [split for _, split in real]})
    d1, d2 = ([pair[side] for pair in pairs] for side in (0, 1))
    chosen = pa.table({"d1": [*d1, 0], "d2": [*d2, 1], "verdict": ["accepted"] * len(pairs) + ["near_duplicate"]})
    rows = [_row(number, entry) for number, entry in enumerate(made)]
    synthesized = pa.Table.from_pylist(
        [{n: v for n, v in row.items() if n != "verdict"} for row in rows], synthetic.SCHEMA
    )
    whole = pa.schema([*synthetic.SCHEMA, ("verdict", pa.string())])
    kept = pa.Table.from_pylist([row for row in rows if row["verdict"] == "accepted"], whole)
    lost = pa.Table.from_pylist([row for row in rows if row["verdict"] != "accepted"], whole)
    filtered = written(folder / "synthetic", _cut(kept, shards))
    written(folder / "synthetic", _cut(lost, shards), "rejected", filtered)
    capped = [number for number, (_, split) in enumerate(real) if split == "capped"]
    vectors = np.random.default_rng(0).normal(size=(len(capped), 4)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    return {
        "documents": written(folder / "documents", _cut(pa.table(columns), shards)).finish(),
        "splits": written(folder / "splits", _cut(splits, shards)).finish(),
        "pairs": written(folder / "pairs", _cut(chosen, shards)).finish(),
        "synthesized": written(folder / "synthesized", _cut(synthesized, shards)).finish(),
        "synthetic": filtered.finish(),
        "embeddings": written(folder / "embeddings", [pa.table({"ordinal": capped, "embedding": column})]).finish(),
        "tokenizer": _tokenizer(folder / "tokenizer"),
    }


def measured(
    folder: Path,
    made: dict[str, Artifact],
    documents: int = 1000,
    embedding: Embedding = OF_THE_USER,
    evaluations: Evaluations = NO_SETS,
) -> Artifact:
    """What the stage `quality` makes of them."""
    output = Output(epath.Path(folder), Recipe("quality", 1, {}, {}), "quality")
    about = {"pairs": "related", "base": None, "suffix": ""}
    settings: dict[str, Any] = {"settings": SETTINGS, "evaluations": evaluations, "execution": Execution()}
    return stage.run(output, **made, measured=documents, about=about, embedding=embedding, **settings)


def _row(number: int, entry: dict[str, Any]) -> dict[str, Any]:
    read = list(entry.get("read", ()))
    return {
        "ordinal": number,
        "id": f"syn-{number}",
        "text": entry["text"],
        "seed": read[-1] if read else None,
        "conditioning": read or None,
        "finish": entry.get("finish", "end"),
        "verdict": entry.get("verdict", "accepted"),
    }


def _tokenizer(folder: Path) -> Artifact:
    """Bytes alone, and the two special tokens."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    entries = {letter: number for number, letter in enumerate(letters)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(entries, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([SETTINGS.end_of_document, SETTINGS.separator])
    output = Output(epath.Path(folder), Recipe("tokenizer", 1, {}, {}), "tokenizer")
    with output.writing("tokenizer.json") as writing:
        writing.path.write_text(model.to_str())
    return output.finish()
