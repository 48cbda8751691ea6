"""What a report was made from: the artifacts with their keys, which name their whole recipe."""

from typing import Any

from sbp_jax.accounting.charges import CHARGED
from sbp_jax.artifacts import Artifact
from sbp_jax.report.results import Results

SHARED = ("documents", "splits", "neighbors", "screened", "pairs", "synthesizer", "synthesized", "synthetic")
MEANING = {
    "documents": "the corpus as it was read",
    "splits": "which documents are held out, capped, oracle",
    "neighbors": "the nearest documents of each capped one",
    "screened": "words, language and source of each capped document",
    "pairs": "neighbours with the verdict on each",
    "synthesizer": "the base model, tuned on pairs",
    "synthesized": "all that it wrote",
    "synthetic": "what the filters kept",
}


def artifacts(results: Results) -> list[dict[str, Any]]:
    """Every artifact that the page reads: `name`, `meaning`, `rows`, `key`, and the keys of its inputs by role."""
    found = []
    for name in SHARED:
        artifact = getattr(results, name)
        if artifact is not None:
            found.append(_row(name, MEANING[name], artifact))
    for kind, meaning, runs in (("train", "trained", results.trained), ("score", "scored", results.scored)):
        for arm, seeds in runs.items():
            found += [_row(f"{kind}-{arm}-{seed}", f"the {arm} arm, {meaning}", made) for seed, made in seeds.items()]
    for kind, on in (("score", results.texts), ("task", results.tasks)):
        for name, runs in on.items():
            for arm, seeds in runs.items():
                told = f"the {arm} arm on {name}"
                found += [_row(f"{kind}-{name}-{arm}-{seed}", told, made) for seed, made in seeds.items()]
    found += [
        _row(f"copies-{name}", f"what of {name} stands in the corpus", made) for name, made in results.copies.items()
    ]
    for suffix, made in results.quality.items():
        found.append(_row(f"quality{suffix}", "synthetic documents beside real ones", made))
    listed = {row["key"] for row in found}
    for role, made in results.charged.items():
        if made.key not in listed:
            found.append(_row(role.removeprefix(CHARGED), "read for what it took", made))
    return found


def _row(name: str, meaning: str, artifact: Artifact) -> dict[str, Any]:
    inputs = artifact.recipe.get("inputs", {})
    return {"name": name, "meaning": meaning, "rows": artifact.rows, "key": artifact.key, "inputs": inputs}
