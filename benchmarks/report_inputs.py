"""Artifacts with the shapes of a large run's, for the speed of its report: made of chance, but read as real ones are.

Shards of texts beyond the first `DISTINCT` are links to those. The few that the report reads texts of are different
files all the same.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from sbp_jax.arms import standard_arms
from sbp_jax.artifacts import Artifact, Output, Recipe, find, parquet
from sbp_jax.config import Experiment, Pairs
from sbp_jax.data import synthetic_scores
from sbp_jax.data.synthetic import SCHEMA
from sbp_jax.stages import neighbors as neighbors_stage
from sbp_jax.stages import pairs as pairs_stage
from sbp_jax.stages import screen as screen_stage

CORPUS = Path(__file__).parents[1] / "data/wikipedia_vital/documents.jsonl.gz"
PER_SHARD, WRITTEN = 50_000, 512  # documents of a shard, real and synthetic
DISTINCT = 25  # shards of either with texts of their own
TOGETHER = 4  # articles a document: 2 KB, about
SPLITS = {"validation": 0.02, "test": 0.03, "capped": 0.24, "oracle": 0.71}
SOURCES, TOP_K, SEEDS = 1_000_000, 20, (0, 1, 2)
STEPS, EVALUATE_EVERY, BATCH = 20_000, 200, 1 << 19
EXPERIMENT = Experiment(name="large", pairs=Pairs(threshold=0.75), arms=standard_arms(0.375), seeds=SEEDS)


def make(folder: Path, documents: int, capped: float) -> dict[str, Artifact]:
    """The inputs of the stage by role; those that are in the folder already are not made again."""
    shares = SPLITS | {"capped": capped, "oracle": 0.95 - capped}
    sizes = [min(PER_SHARD, documents - at) for at in range(0, documents, PER_SHARD)]
    splits = list(_splits(sizes, shares))
    chosen = [at * PER_SHARD + np.flatnonzero(names == "capped") for at, names in enumerate(splits)]
    test = np.concatenate([at * PER_SHARD + np.flatnonzero(names == "test") for at, names in enumerate(splits)])
    every = np.concatenate(chosen)
    made = {
        "documents": _made(folder / "documents", partial(_documents, sizes)),
        "splits": _made(
            folder / "splits", partial(_shards, [partial(_split_table, at, n) for at, n in enumerate(splits)])
        ),
        "screened": _made(folder / "screened", partial(_shards, [partial(_screened, own) for own in chosen])),
        "neighbors": _made(folder / "neighbors", partial(_shards, [partial(_neighbors, own, every) for own in chosen])),
        "pairs": _made(folder / "pairs", partial(_shards, [partial(_pairs, own, every) for own in chosen])),
        "synthesizer": _made(folder / "synthesizer", partial(_trained, 2.5, 0.0)),
    }
    number = len(every) * 5 // 4
    made["synthesized"] = _made(folder / "synthesized", partial(_synthesized, number, every))
    made["synthetic"] = _made(folder / "synthetic", partial(_synthetic, number, every))
    for place, arm in enumerate(EXPERIMENT.arms):
        for seed in EXPERIMENT.seeds:
            name, loss = f"{arm.name}/{seed}", 3.0 - place / 50
            made[f"trained/{name}"] = _made(
                folder / f"train-{arm.name}-{seed}", partial(_trained, loss, arm.synthetic_share)
            )
            made[f"scored/{name}"] = _made(folder / f"score-{arm.name}-{seed}", partial(_scored, test, loss, seed))
    return made


def _made(folder: Path, write: Callable[[Output], Artifact]) -> Artifact:
    recipe = Recipe(folder.name, 1, {}, {})
    found = find(epath.Path(folder), recipe.key)
    if found is not None:
        return found
    print(f"{folder.name} ...", flush=True)
    return write(Output(epath.Path(folder), recipe, folder.name))


def _shards(tables: list[Callable[[], pa.Table]], output: Output) -> Artifact:
    for index, table in enumerate(tables):
        output.shard(index, ".parquet", lambda writing, table=table: parquet.write(writing, table()))
    return output.finish({"backend": "bucketed", "recall_at_k": 0.98})


def _linked(output: Output, index: int, prefix: str, table: Callable[[], pa.Table], stats: dict[str, int]) -> None:
    """Writes a shard, or links it to the one of the first `DISTINCT` that stands for it."""
    name, like = f"{prefix}-{index:05d}.parquet", f"{prefix}-{index % DISTINCT:05d}.parquet"
    with output.writing(name) as writing:
        if name == like or not (output.path / like).exists():
            parquet.write(writing, table())
        else:
            os.link(output.path / like, output.path / name)
            writing.rows = parquet.rows(output.path / name)
        writing.stats = stats


def _splits(sizes: list[int], shares: dict[str, float]) -> Iterator[np.ndarray]:
    random, names = np.random.default_rng(0), np.array(list(shares))
    for size in sizes:
        yield names[random.choice(len(names), size, p=list(shares.values()))]


def _split_table(at: int, names: np.ndarray) -> pa.Table:
    ordinals = at * PER_SHARD + np.arange(len(names))
    return pa.table({"ordinal": ordinals, "split": pa.array(names.tolist(), pa.string())})


def _documents(sizes: list[int], output: Output) -> Artifact:
    with gzip.open(CORPUS, "rt") as stream:
        articles = [json.loads(line)["text"] for line in stream]

    def table(index: int, size: int) -> pa.Table:
        random = np.random.default_rng(index)
        chosen = random.integers(0, len(articles), (size, TOGETHER))
        texts = ["\n\n".join(articles[place] for place in places) for places in chosen.tolist()]
        ordinals = index * PER_SHARD + np.arange(size)
        columns = {"ordinal": ordinals, "id": [f"doc-{ordinal}" for ordinal in ordinals]}
        return pa.table(columns | {"source": _sources(ordinals), "text": texts})

    for index, size in enumerate(sizes):
        if size == PER_SHARD:
            _linked(output, index, "part", partial(table, index, size), {})
        else:
            output.shard(index, ".parquet", lambda writing, at=index, n=size: parquet.write(writing, table(at, n)))
    return output.finish({"skipped": 12})


def _sources(ordinals: np.ndarray) -> pa.Array:
    """Sources of which few have many documents and most have a few."""
    numbers = np.minimum(np.random.default_rng(int(ordinals[0])).zipf(1.2, len(ordinals)), SOURCES)
    return pa.array([f"site-{number}.example" for number in numbers.tolist()])


def _screened(ordinals: np.ndarray) -> pa.Table:
    size = len(ordinals)
    columns = {
        "ordinal": ordinals,
        "words": np.full(size, 300, np.int32),
        "language": np.random.default_rng(1).choice(["en", "de", "fr"], size, p=[0.9, 0.06, 0.04]).tolist(),
        "source": _sources(ordinals),
        "contaminated_by": [""] * size,
        "contaminated_item": [""] * size,
        "rule_version": np.full(size, 2, np.int32),
    }
    return pa.table(columns, schema=screen_stage.SCHEMA)


def _near(ordinals: np.ndarray) -> np.ndarray:
    """Similarities of each document's neighbours, falling."""
    random = np.random.default_rng(int(ordinals[0]))
    return -np.sort(-random.normal(0.72, 0.08, (len(ordinals), TOP_K)).clip(-1, 1).astype(np.float32), axis=1)


def _neighbors(ordinals: np.ndarray, every: np.ndarray) -> pa.Table:
    random = np.random.default_rng(int(ordinals[0]) + 1)
    columns = {
        "query": np.repeat(ordinals, TOP_K),
        "neighbor": every[random.integers(0, len(every), len(ordinals) * TOP_K)],
        "similarity": _near(ordinals).reshape(-1),
    }
    return pa.table(columns, schema=neighbors_stage.SCHEMA)


def _pairs(ordinals: np.ndarray, every: np.ndarray) -> pa.Table:
    """The neighbours of at least 0.7, nine of ten of those past the threshold accepted."""
    random = np.random.default_rng(int(ordinals[0]) + 1)
    d2 = every[random.integers(0, len(every), len(ordinals) * TOP_K)]
    similarity = _near(ordinals).reshape(-1)
    kept = similarity >= np.float32(0.7)
    size = int(kept.sum())
    outcomes = np.array(["accepted", "near_duplicate", "too_long"])[random.choice(3, size, p=[0.9, 0.07, 0.03])]
    columns: dict[str, Any] = {
        "d1": np.repeat(ordinals, TOP_K)[kept],
        "d2": d2[kept],
        "similarity": similarity[kept],
        "rank": np.tile(np.arange(TOP_K, dtype=np.int32), len(ordinals))[kept],
        "mutual": random.random(size) < 0.5,
        "containment": random.beta(0.3, 3, size).astype(np.float32),
        "jaccard": random.beta(0.3, 6, size).astype(np.float32),
        "shared": random.integers(0, 200, size, dtype=np.int32),
        "boilerplate": random.integers(0, 20, size, dtype=np.int32),
        "tokens": random.integers(100, 2000, size, dtype=np.int32),
        "length_ratio": random.random(size).astype(np.float32),
        "same_source": random.random(size) < 0.2,
        "same_language": random.random(size) < 0.95,
        "target_rank": random.geometric(0.1, size).astype(np.int32),
        "rule_version": np.full(size, 3, np.int32),
    }
    columns["verdict"] = np.where(similarity[kept] < np.float32(0.75), "too_distant", outcomes).tolist()
    return pa.table({name: columns[name] for name in pairs_stage.SCHEMA.names}, schema=pairs_stage.SCHEMA)


def _written(index: int, every: np.ndarray) -> pa.Table:
    """A shard of synthetic documents."""
    random = np.random.default_rng(index)
    seeds = every[random.integers(0, len(every), WRITTEN)]
    words = np.array([f"word{number}" for number in range(2000)])
    texts = [" ".join(words[places]) for places in random.integers(0, 2000, (WRITTEN, 150))]
    same = {"step": 1000, "temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_new_tokens": 256, "sample": 0}
    columns: dict[str, Any] = {name: [value] * WRITTEN for name, value in same.items()}
    columns |= {"synthesizer": ["0123456789abcdef"] * WRITTEN, "engine": ["jax"] * WRITTEN}
    columns |= {"ordinal": index * WRITTEN + np.arange(WRITTEN), "id": [f"syn-{seed}-0" for seed in seeds]}
    columns |= {"text": texts, "seed": seeds, "seed_id": [f"doc-{seed}" for seed in seeds]}
    columns |= {"conditioning": [[seed] for seed in seeds], "conditioning_ids": [[f"doc-{seed}"] for seed in seeds]}
    columns |= {"similarity": random.random(WRITTEN).astype(np.float32), "key": [f"0:{seed}:0" for seed in seeds]}
    columns |= {"finish": random.choice(["end", "length"], WRITTEN).tolist(), "new_tokens": [200] * WRITTEN}
    return pa.table(columns | {"logprob": [-500.0] * WRITTEN}, schema=SCHEMA)


def _synthesized(number: int, every: np.ndarray, output: Output) -> Artifact:
    for index in range(number // WRITTEN):
        finishes = {"documents": WRITTEN, "new_tokens": 200 * WRITTEN, "finish_end": 256, "finish_length": 256}
        _linked(output, index, "part", partial(_written, index, every), finishes | {"finish_loop": 0})
    return output.finish({"seeds": number})


def _synthetic(number: int, every: np.ndarray, output: Output) -> Artifact:
    def table(index: int, accepted: bool) -> pa.Table:
        whole = _written(index, every)
        verdicts = np.where(np.arange(WRITTEN) % 5 > 0, "accepted", "copied")
        random = np.random.default_rng(index)
        for name, kind in zip(synthetic_scores.SCHEMA.names, synthetic_scores.SCHEMA.types, strict=True):
            if name not in whole.schema.names:
                values: Any = random.integers(0, 90, WRITTEN).tolist() if pa.types.is_integer(kind) else None
                values = random.random(WRITTEN).tolist() if pa.types.is_floating(kind) else values
                whole = whole.append_column(name, pa.array(values or ["en"] * WRITTEN, kind))
        whole = whole.append_column("verdict", pa.array(verdicts.tolist()))
        return whole.filter(pa.array((verdicts == "accepted") == accepted))

    for index in range(number // WRITTEN):
        kept, rejected = WRITTEN - WRITTEN // 5 - 1, WRITTEN // 5 + 1
        _linked(output, index, "part", partial(table, index, True), {"accepted": kept, "bytes": 1000 * kept})
        _linked(output, index, "rejected", partial(table, index, False), {"rejected_copied": rejected})
    return output.finish({"documents": number, "index": "bloom"})


def _trained(loss: float, share: float, output: Output) -> Artifact:
    random = np.random.default_rng(0)
    lines, best = [], (np.inf, 0)
    for step in range(1, STEPS + 1):
        own = loss + 5 * np.exp(-8 * step / STEPS)
        line = {"step": step, "loss": own + random.normal(0, 0.05), "gradient_norm": 1.0, "parameter_norm": 50.0}
        line |= {"update_norm": 0.01, "learning_rate": 1e-3, "bits_per_byte": own / 2.9, "targets": BATCH}
        line |= {"tokens": step * BATCH, "seconds": 1.25, "data_seconds": 0.001, "time": 1.7e9 + step}
        line |= {"tokens_per_second_per_chip": 12345.6, "mfu": 0.41}
        if step % EVALUATE_EVERY == 0:
            line["validation"] = float(own)
            best = min(best, (float(own), step))
        lines.append(json.dumps(line) + "\n")
    tokens = STEPS * BATCH
    seen = {"real": tokens * (1 - share), "synthetic": tokens * share}
    ledger = {
        name: {"planned_tokens": int(n), "tokens": int(n), "rows": int(n) // 4096, "epochs": 3.0}
        for name, n in seen.items()
        if n
    }
    contents = {"metrics.jsonl": "".join(lines), "ledger.json": json.dumps(ledger)}
    contents["final/config.json"] = json.dumps({"vocab_size": 49152})
    for name, content in contents.items():
        with output.writing(name) as writing:
            writing.path.write_text(content)
    return output.finish({"steps": STEPS, "tokens": tokens, "best_step": best[1], "best_validation": best[0]})


def _scored(test: np.ndarray, loss: float, seed: int, output: Output) -> Artifact:
    random, own = np.random.default_rng(7), np.random.default_rng([seed, int(1000 * loss)])
    targets = random.integers(100, 2000, len(test))
    nats = targets * (random.normal(0, 0.3, len(test)) + loss + own.normal(0, 0.02, len(test)))
    table = pa.table({"ordinal": test, "nats": nats, "targets": targets, "bytes": 4 * targets})
    output.shard(0, ".parquet", partial(parquet.write, table=table))
    mean = float(nats.sum() / targets.sum())
    total = {"documents": len(test), "targets": int(targets.sum()), "bytes": int(4 * targets.sum())}
    return output.finish({"nats_per_token": mean, "bits_per_byte": mean / np.log(2) / 4} | total)
