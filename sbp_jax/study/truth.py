"""What pairs and synthetic documents are worth in a world whose truth is known: no judge is needed."""

from collections.abc import Iterator
from typing import Any

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.study.world import Fact, World


def pairs(world: World, documents: Artifact, splits: Artifact, found: Artifact) -> dict[str, float]:
    """How many of the accepted pairs have one concept, and how many of all capped pairs of one concept they are.

    Returns:
      pairs: accepted ones; precision; recall, over ordered pairs.
    """
    concept = _concepts(world, documents, splits)
    sizes: dict[int, int] = {}
    for one in concept.values():
        sizes[one] = sizes.get(one, 0) + 1
    accepted = [(row["d1"], row["d2"]) for row in _rows(found, ["d1", "d2", "verdict"]) if row["verdict"] == "accepted"]
    same = sum(concept[first] == concept[second] for first, second in accepted)
    possible = sum(size * (size - 1) for size in sizes.values())
    return {"pairs": len(accepted), "precision": same / max(len(accepted), 1), "recall": same / possible}


def synthetic(world: World, documents: Artifact, splits: Artifact, made: Artifact) -> dict[str, float]:
    """What synthetic documents state, beside the capped ones; those kept, or with `made` before the filters, all.

    Returns:
      documents; on_concept: share whose every fact is of the seed's concept and that state one at all; facts: stated by
      a document; true: share of these; new: share of the true ones in a wording that no capped document of the concept
      has; told: share of all wordings of true facts that synthetic or capped documents have; copies: share of documents
      that are a capped one word for word.
    """
    concept = _concepts(world, documents, splits)
    capped = [row["text"] for row in _rows(documents, ["ordinal", "text"]) if row["ordinal"] in concept]
    known = {_wording(fact) for text in capped for fact in world.stated(text)}
    texts, told = set(capped), set(known)
    counts = dict.fromkeys(("documents", "on_concept", "facts", "true", "new", "copies"), 0)
    for row in _rows(made, ["text", "seed"]):
        facts = world.stated(row["text"])
        true = [fact for fact in facts if world.is_true(fact)]
        counts["documents"] += 1
        counts["copies"] += row["text"].strip() in texts
        if row["seed"] is not None and facts:
            counts["on_concept"] += all(fact.concept == concept[row["seed"]] for fact in facts)
        counts["facts"] += len(facts)
        counts["true"] += len(true)
        counts["new"] += sum(_wording(fact) not in known for fact in true)
        told |= {_wording(fact) for fact in true}
    number, facts_stated, true_ones = (max(counts[name], 1) for name in ("documents", "facts", "true"))
    return {
        "documents": counts["documents"],
        "on_concept": counts["on_concept"] / number,
        "facts": counts["facts"] / number,
        "true": counts["true"] / facts_stated,
        "new": counts["new"] / true_ones,
        "told": len(told) / world.wordings,
        "told_by_capped": len(known) / world.wordings,
        "copies": counts["copies"] / number,
    }


def _wording(fact: Fact) -> tuple[Any, ...]:
    return fact.concept, fact.attribute, fact.genre, fact.wording


def _concepts(world: World, documents: Artifact, splits: Artifact) -> dict[int, int]:
    """The concept of each capped document, by ordinal; its source is the concept's name."""
    number = {name: place for place, name in enumerate(world.names)}
    capped = {row["ordinal"] for row in _rows(splits, ["ordinal", "split"]) if row["split"] == "capped"}
    rows = _rows(documents, ["ordinal", "source"])
    return {row["ordinal"]: number[row["source"]] for row in rows if row["ordinal"] in capped}


def _rows(artifact: Artifact, columns: list[str]) -> Iterator[dict[str, Any]]:
    for table in parquet.tables(artifact, columns):
        yield from table.to_pylist()
