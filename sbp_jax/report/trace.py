"""Where a document comes from: a synthetic one, a real one, or those of a training example."""

from collections.abc import Sequence
from typing import Any

from sbp_jax.data.synthetic import SCHEMA
from sbp_jax.report.nearest import by_meaning, by_words
from sbp_jax.report.results import rows_at
from sbp_jax.report.trail import REAL, Chain, Trail, real_at, real_by_id, synthetic_by_id, unknown
from sbp_jax.report.training_examples import example, pieces
from sbp_jax.training.export import BEST

SETTINGS = ("temperature", "top_p", "top_k", "max_new_tokens")
LINEAGE = ("sample", "key", "engine", "finish", "new_tokens", "logprob")


def trace(trail: Trail, asked: str, search: bool = True) -> dict[str, Any]:
    """What is known of a document or a training example, as JSON values.

    Args:
      asked: an id; an instance and an id, INSTANCE:ID, where several instances have it; or a training example, as
        `training_examples.example` reads it.
      search: whether the nearest real documents are looked for, which reads the corpus.

    Returns:
      `asked`, `example` (None for an id), and `documents`: one for an id, several where the real corpus or a control
      has the same, those of the row in their order for an example.

    Raises:
      SbpError: there is no such document or example, or a stage that it needs is not complete.
    """
    found, documents = example(trail, asked), []
    if found is None:
        documents = _by_id(trail, asked)
    else:
        for piece in pieces(trail, found):
            told = _at(trail, piece.instance, piece.ordinal)
            documents.append(told | {"positions": [piece.start, piece.stop], "bears_loss": not piece.read})
    if search:
        _add_nearest(trail, [document for document in documents if document["kind"] == "synthetic"])
    return {"asked": asked, "example": None if found is None else vars(found), "documents": documents}


def _by_id(trail: Trail, asked: str) -> list[dict[str, Any]]:
    """Real documents first, then those of each chain."""
    instance, _, own_id = asked.partition(":")
    qualified = instance in trail.of_stage("ingest", "synthesize", "filter") and own_id
    told = []
    for name, wanted in [("", asked), (instance, own_id)] if qualified else [("", asked)]:
        if name in ("", REAL):
            told += [_real(trail, row) for row in real_by_id(trail, [wanted]).values()]
        for chain in trail.chains():
            if name in ("", chain.synthetic, chain.synthesized):
                told += [_synthetic(trail, chain, row) for row in synthetic_by_id(trail, chain, [wanted])]
    if not told:
        raise unknown(trail, asked)
    return told


def _at(trail: Trail, instance: str, ordinal: int) -> dict[str, Any]:
    if instance == REAL:
        return _real(trail, real_at(trail, [ordinal])[0])
    (row,) = rows_at(trail.artifact(instance), [ordinal])
    if trail.nodes[instance].stage == "texts":
        return {"kind": "real", "instance": instance} | row | {"split": "a held-out text set"}
    return _synthetic(trail, trail.chain(instance), row | {"verdict": "accepted"})


def _real(trail: Trail, row: dict[str, Any]) -> dict[str, Any]:
    split = None
    for name in trail.of_stage("split"):
        if (splits := trail.find(name)) is not None:
            split = rows_at(splits, [row["ordinal"]], ["split"])[0]["split"]
    return {"kind": "real", "instance": REAL} | row | {"split": split}


def _synthetic(trail: Trail, chain: Chain, row: dict[str, Any]) -> dict[str, Any]:
    """A synthetic document with all that its row says, what was read before it was written, and the model."""
    verdict, ordinal = row["verdict"], row["ordinal"]
    known = {*SCHEMA.names, "verdict", "rule_version"}
    read = read_by(row)
    tokens = row["new_tokens"]
    told: dict[str, Any] = {
        "kind": "synthetic",
        "instance": chain.synthesized if verdict is None else chain.synthetic,
        "id": row["id"],
        # Of the accepted document in the artifact; a rejected one keeps its number among all that were written.
        "ordinal": ordinal,
        "text": row["text"],
        "verdict": verdict,
        "scores": {name: value for name, value in row.items() if name not in known},
        "rule_version": row.get("rule_version"),
    }
    told |= {name: row[name] for name in LINEAGE if name in row}
    told["logprob_per_token"] = row["logprob"] / tokens if tokens else None
    told["settings"] = {name: row[name] for name in SETTINGS if name in row}
    if "similarity" in row:
        told["similarity"] = row["similarity"]
    documents = real_at(trail, read)
    told["read"] = [document | {"seed": document["ordinal"] == row["seed"]} for document in documents]
    told["checkpoint"] = _checkpoint(trail, chain.model, row)
    return told


def read_by(row: dict[str, Any]) -> list[int]:
    """Ordinals of all documents that were read before a synthetic one was written, the seed among them."""
    read = list(row.get("conditioning") or [])
    return read if row["seed"] is None or row["seed"] in read else [*read, row["seed"]]


def _checkpoint(trail: Trail, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """The model that wrote a document: where it is, what it was tuned on, and what it started from."""
    node, artifact = trail.nodes[name], trail.find(name)
    told: dict[str, Any] = {"instance": name, "key": row["synthesizer"], "path": None}
    if artifact is None or artifact.key != row["synthesizer"]:
        there = "not there" if artifact is None else f"another one now, {artifact.key}"
        return told | {"step": row.get("step"), "note": f"{name} is {there}; it was made again or removed"}
    step = artifact.stats["best_step"] if row.get("step") is None else row["step"]
    told |= {"path": str(artifact.path / BEST), "step": step, "steps": artifact.stats["steps"]}
    told["tokens"] = artifact.stats["tokens"]
    if node.stage == "tune":
        pairs = trail.find(node.inputs["pairs"])
        told["tuned_on"] = {"instance": node.inputs["pairs"], "pairs": pairs and pairs.stats["pairs"]}
        told["base"] = _base(trail, node.inputs.get("base"))
    return told


def _base(trail: Trail, name: str | None) -> dict[str, Any]:
    if name is None:
        return {"instance": None, "path": trail.experiment.tuning.base}
    artifact = trail.find(name)
    if artifact is None:
        return {"instance": name, "path": None}
    step = artifact.stats["best_step"]
    return {"instance": name, "key": artifact.key, "path": str(artifact.path / BEST), "step": step}


def _add_nearest(trail: Trail, documents: Sequence[dict[str, Any]]) -> None:
    """Adds to each synthetic document the nearest real ones, and its similarity to those that were read."""
    if not documents:
        return
    texts = [document["text"] for document in documents]
    words = by_words(trail.artifact(REAL), texts)
    read = [[entry["ordinal"] for entry in document["read"]] for document in documents]
    meanings, reason = by_meaning(trail, texts, read)
    for place, document in enumerate(documents):
        nearest: dict[str, Any] = {"by_words": None, "by_meaning": None}
        if (found := words[place]) is not None:
            nearest["by_words"] = found | _named(trail, found["ordinal"])
        if reason:
            nearest["by_meaning_reason"] = reason
        else:
            meaning = meanings[place]
            similar = meaning.pop("read")
            nearest["by_meaning"] = meaning | _named(trail, meaning["ordinal"])
            for entry in document["read"]:
                entry["similarity_to_text"] = similar.get(entry["ordinal"])
        document["nearest"] = nearest


def _named(trail: Trail, ordinal: int) -> dict[str, Any]:
    return real_at(trail, [ordinal])[0]
