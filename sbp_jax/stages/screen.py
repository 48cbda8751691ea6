"""Stage `screen`: what is known of each capped document by itself, before any pair is judged.

Its words, language, source, the item of an evaluation set that it holds, and its shingles, which readers map into
memory. Boilerplate is a matter of the whole corpus and of `pairs.common`: the stage `pairs` finds it.
"""

from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.config import Execution
from sbp_jax.data import shards
from sbp_jax.data.screened import save
from sbp_jax.text import contamination
from sbp_jax.text.contamination import Evaluations
from sbp_jax.text.language import language
from sbp_jax.text.shingles import shingles_of, words

VERSION = 2
BATCH = 256  # documents whose words are hashed at a time
READ = ["ordinal", "source", "text"]
ARRAYS = ("hashes", "places", "offsets")  # of each shard: see Screened
SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("words", pa.int32()),
        ("language", pa.string()),
        ("source", pa.string()),
        ("contaminated_by", pa.string()),
        ("contaminated_item", pa.string()),
        ("rule_version", pa.int32()),
    ]
)


def run(
    output: Output, *, documents: Artifact, splits: Artifact, evaluations: Evaluations, execution: Execution
) -> Artifact:
    """Writes a row for each capped document, one shard for each shard of the documents.

    Beside each shard lie `hashes` (uint64, the sorted unique 13-word shingles of its documents one after another),
    `places` (int32, the word at which each of them begins first) and `offsets` (int64 [documents + 1]), as .npy.

    Raises:
      SbpError: a file of an evaluation set that cannot be read, or holds no item that could be found.
    """
    items, rows = _items(evaluations), parquet.shard_rows(documents)
    work = partial(_shard, documents=documents, splits=splits, evaluations=evaluations)
    names = [_names(number) for number in range(len(rows))]
    shards.make(output, names, work, execution, rows)
    _items.cache_clear()
    counts = {"items": items.items, "items_too_short": items.too_short, "item_templates": items.templates}
    return output.finish(counts)


def _names(number: int) -> list[str]:
    return [f"{array}-{number:05d}.npy" for array in ARRAYS] + [f"part-{number:05d}.parquet"]


_items = lru_cache(maxsize=1)(contamination.read)  # once in each process that screens


def _shard(output: Output, number: int, documents: Artifact, splits: Artifact, evaluations: Evaluations) -> None:
    table, split = parquet.shard(documents, number, READ), parquet.shard(splits, number, ["split"])
    chosen = table.filter(pa.array(split["split"].to_numpy(zero_copy_only=False) == "capped"))
    rows, *arrays = _screen(chosen, _items(evaluations))
    *names, last = _names(number)
    for name, array in zip(names, arrays, strict=True):
        save(output, name, array)
    with output.writing(last) as writing:
        parquet.write(writing, rows)
        contaminated = np.count_nonzero(rows["contaminated_by"].to_numpy(zero_copy_only=False) != "")
        writing.stats = {"documents": rows.num_rows, "contaminated": int(contaminated)}


def _screen(table: pa.Table, items: contamination.Items) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    """The rows of some documents, and their shingles, places and offsets."""
    hashes, places, counts = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], [0]
    lengths: list[int] = []
    languages: list[str] = []
    held: list[contamination.Text | None] = []
    for batch in table.to_batches(BATCH):
        texts = batch.column("text").to_pylist()
        found = words(texts)
        for shingles, firsts in shingles_of(found):
            hashes.append(shingles)
            places.append(firsts.astype(np.int32))
            counts.append(len(shingles))
        lengths += np.diff(found.offsets).tolist()
        languages += map(language, texts)
        hits = items.search(found)
        held += [hits.get(number) for number in range(len(texts))]
    columns = [
        table["ordinal"],
        lengths,
        languages,
        table["source"],
        [item.file if item else "" for item in held],
        [f"line {item.line}: {item.text[: contamination.SHOWN]}" if item else "" for item in held],
        [contamination.RULE_VERSION] * table.num_rows,
    ]
    rows = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
    return rows, np.concatenate(hashes), np.concatenate(places), np.cumsum(counts, dtype=np.int64)
