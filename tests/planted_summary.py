"""A summary of everything that a run can have: nine arms, seeds, a sweep, text sets, tasks, operations, quality."""

from typing import Any

import numpy as np

from sbp_jax.config import Arm, Corpus, Experiment, Pairs

ARMS = (
    Arm("repetition"),
    Arm("sbp", synthetic_share=0.25),
    Arm("oracle", real="oracle"),
    Arm("random_pairs", synthetic_share=0.25, pairs="random"),
    Arm("self_samples", synthetic_share=0.25, pairs="none"),
    Arm("megadoc", synthetic_share=0.25, layout="megadoc"),
    Arm("staged", synthetic_share=0.25, order="staged"),
    Arm("in_context", layout="in_context"),
    Arm("multi_round", synthetic_share=0.25, base="sbp"),
)
LOSSES = dict(zip((arm.name for arm in ARMS), (4.2, 4.15, 4.1, 4.21, 4.19, 4.14, 4.17, 4.2, 4.13), strict=True))
LOSSES |= {"sbp_12": 4.17, "sbp_50": 4.16, "sbp_75": 4.3}
EXPERIMENT = Experiment(
    name="every-arm",
    corpus=Corpus(paths=("/somewhere/else/corpus.jsonl",)),
    pairs=Pairs(threshold=0.5),
    arms=ARMS,
    seeds=(0, 1, 2),
    note="A planted note: <b>not bold</b>.",
)
MEASURES = {
    "repetition": {"label": "repeated", "definition": "4-word n-grams that repeat an earlier one.", "unit": "share"},
    "duplicates": {"label": "duplicates", "definition": "Near-copies of another one of them.", "unit": "share"},
    "copied": {"label": "copied", "definition": "13-word shingles found in the corpus.", "unit": "share"},
    "similarity": {"label": "similarity to the seed", "definition": "mean cosine", "unit": ""},
    "words": {"label": "words", "definition": "mean number of words", "unit": "words"},
}


def fill(summary: dict[str, Any], interval: float = 0.01) -> dict[str, Any]:
    """A summary of the nine arms with the parts of it that their artifacts alone do not give."""
    random = np.random.default_rng(0)
    arms = {row["arm"]: row for row in summary["arms"]}
    for row in arms.values():
        row |= {"low": row["nats_per_token"] - 0.05, "high": row["nats_per_token"] + 0.05}
    controls = [
        {"arm": "sbp", "against": name, "set": "test", "over": "documents and seeds"}
        | around(LOSSES["sbp"] - LOSSES[name], interval, "difference")
        for name in ("random_pairs", "self_samples")
    ]
    texts = [
        {"set": name, "documents": 120, "targets": 40_000, "bytes": 160_000, "arms": {arm: loss(arm) for arm in arms}}
        for name in ("openwebtext2", "lambada")
    ]
    for text in texts:
        summary["comparisons"] += [
            {"arm": arm, "against": "repetition", "set": text["set"], "over": "documents and seeds"}
            | around(LOSSES[arm] - LOSSES["repetition"], 0.04, "difference")
            for arm in arms
            if arm != "repetition"
        ]
    budgets = [
        {**gap, "budget": "flops", "reason": None, "against": "repetition_long"}
        | around(gap["closed"] and gap["closed"] * 0.6, 0.3, "closed")
        for gap in summary["gaps"]
        if gap["closed"] is not None
    ]
    undefined = {"low": None, "high": None, "closed": None, "set": "openwebtext2"}
    budgets += [{**summary["gaps"][0], **undefined, "reason": "the oracle cannot be told from repetition there"}]
    shares = [
        {
            "arm": f"sbp_{round(100 * share)}",
            "share": share,
            "best_validation": level + 0.02,
            "validation": level + 0.03,
        }
        | around(level, 0.01, "nats_per_token")
        for share, level in ((0.0, 4.2), (0.125, 4.17), (0.25, 4.15), (0.375, 4.15), (0.5, 4.16), (0.75, 4.3))
    ]
    repetition = [
        {"arm": f"repetition_{decay}_{epochs}", "weight_decay": decay, "epochs": epochs}
        | dict.fromkeys(("best_validation", "validation"), 4.2 + random.normal(0, 0.02))
        | around(4.2 + random.normal(0, 0.02), 0.01, "nats_per_token")
        for decay in (0.1, 0.3, 1.0)
        for epochs in (2.0, 4.0, 8.0)
    ]
    return summary | {
        "comparisons": summary["comparisons"] + controls,
        "gaps": summary["gaps"] + budgets,
        "texts": texts,
        "tasks": [task("arc_easy", 0.25, list(arms)), task("lambada_openai", 0.0, list(arms))],
        "compute": [operations(row) for row in arms.values()],
        "sweep": {"shares": shares, "repetition": repetition, "chosen": "repetition_0.3_4.0"},
        "quality": [quality(pairs) for pairs in ("related", "random")],
    }


def around(value: float | None, width: float, name: str) -> dict[str, Any]:
    """A value with its interval, as the summary has them."""
    return {
        name: value,
        "low": None if value is None else value - width,
        "high": None if value is None else value + width,
    }


def loss(arm: str) -> dict[str, Any]:
    level = LOSSES[arm] + 0.3
    return {"bits_per_byte": level / 2.9, "perplexity": float(np.exp(level))} | around(level, 0.05, "nats_per_token")


def task(name: str, chance: float, arms: list[str]) -> dict[str, Any]:
    scores = {arm: around(chance + 0.01 * place, 0.03, "value") for place, arm in enumerate(arms)}
    differences = [{"arm": arm, "against": "repetition"} | around(0.01, 0.04, "difference") for arm in arms[1:]]
    return {
        "task": name,
        "metric": "acc",
        "higher_is_better": True,
        "is_share": True,
        "items": 500,
        "chance": chance,
        "fewshot": 0,
        "arms": {arm: score | {"by_seed": [score["value"]] * 3} for arm, score in scores.items()},
        "differences": differences,
    }


def operations(row: dict[str, Any]) -> dict[str, Any]:
    wrote = 1.0 if row["synthetic_share_asked"] else 0.0
    flops = {"embedding": 2e12 * wrote, "search": 1e11 * wrote, "base": 6e13 * wrote, "tuning": 3e13 * wrote}
    flops |= {"generation": 2e13 * wrote, "training": 6e13}
    tokens = {name: {"tokens": stream["tokens"], "epochs": stream["epochs"]} for name, stream in row["streams"].items()}
    flops["total"] = sum(flops.values())
    return {"arm": row["arm"], "flops": flops, "tokens": tokens, "note": "a planted note on operations"}


def quality(pairs: str) -> dict[str, Any]:
    random = np.random.default_rng(len(pairs))
    groups = ("real", "held_out", "generated", "accepted", "rejected", "random")
    rows: list[dict[str, Any]] = []
    for group in groups:
        row: dict[str, Any] = {"group": group, "documents": 200}
        for name in MEASURES:
            value = None if group == "random" and name != "similarity" else float(random.random())
            row |= {name: value, f"{name}_low": value and value - 0.01, f"{name}_high": value and value + 0.01}
        rows.append(row)
    edges = np.linspace(0, 2, 21)
    distances = {}
    for kind, middle in (("accepted", 0.7), ("true_pairs", 0.5), ("random", 1.0)):
        values = np.clip(random.normal(middle, 0.15, 500), 0, 2)
        counts = np.histogram(values, edges)[0]
        distances[kind] = {"edges": edges.tolist(), "counts": counts.tolist(), "mean": float(values.mean())}
    question = {"question": "factual", "measure": "false", "label": "non-factual", "definition": "what is not so"}
    verdicts = {"documents": 20, "unreadable": 1, "false": 0.1, "false_low": 0.05, "false_high": 0.2}
    question |= {"unit": "share", "better": "smaller", "prompt": "Is it so? <b>{text}</b>"}
    judged = question | {"rows": [{"group": group} | verdicts for group in groups[:4]]}
    return {
        "pairs": pairs,
        "base": None,
        "suffix": {"related": "", "random": "-random"}[pairs],
        "rows": rows,
        "measures": MEASURES,
        "distances": distances,
        "judged": {"model": "a planted judge", "answered_by": ["planted"], "questions": [judged]},
        "collapsed": [
            {"group": "accepted", "measure": "opening", "value": 0.4, "real": 0.01, "told": "many begin alike"}
        ],
        "openings": [{"group": "accepted", "opening": "<i>once upon a time", "documents": 80, "share": 0.4}],
        "passages": [{"group": "accepted", "passage": "<i>lived happily ever after", "documents": 70}],
        "finishes": {"generated": {"end": 0.9, "length": 0.1}},
    }
