"""What pairs and synthetic documents are worth where the truth is known: no judge is needed."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.study.world import Fact, World


def pairs(documents: Artifact, splits: Artifact, found: Artifact) -> dict[str, float]:
    """How many of the accepted pairs have one source, and how many of all capped pairs of one source they are.

    In a world of concepts the source of a document is the name of its concept.

    Returns:
      pairs: accepted ones; precision; recall, over ordered pairs.
    """
    source = _sources(documents, splits)
    possible = sum(size * (size - 1) for size in Counter(source.values()).values())
    accepted = [(row["d1"], row["d2"]) for row in _rows(found, ["d1", "d2", "verdict"]) if row["verdict"] == "accepted"]
    same = sum(source[first] == source[second] for first, second in accepted)
    return {"pairs": len(accepted), "precision": same / max(len(accepted), 1), "recall": same / max(possible, 1)}


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
    return {ordinal: number[source] for ordinal, source in _sources(documents, splits).items()}


def _sources(documents: Artifact, splits: Artifact) -> dict[int, str]:
    """The source of each capped document, by ordinal."""
    capped = {row["ordinal"] for row in _rows(splits, ["ordinal", "split"]) if row["split"] == "capped"}
    return {
        row["ordinal"]: row["source"] for row in _rows(documents, ["ordinal", "source"]) if row["ordinal"] in capped
    }


def _rows(artifact: Artifact, columns: list[str]) -> Iterator[dict[str, Any]]:
    for table in parquet.tables(artifact, columns):
        yield from table.to_pylist()
