"""The compute ledger: what an arm is charged for, in floating-point operations.

An arm is charged as if it had been made alone: for every stage instance that its run descends from, once. Repetition
and oracle pay for their own training; an arm with synthetic text pays for the base model, the embeddings, the search,
the tuning and the generation as well, and one that starts from another arm for all of that arm. What is shared with
other arms is charged to each of them. docs/numbers.md says what is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from sbp_jax.accounting import formulas
from sbp_jax.artifacts import Artifact
from sbp_jax.config import Model
from sbp_jax.training.flops import flops_per_token

CHARGED = "charged/"  # begins the role of an input that is read for what it cost, and for nothing else
STAGES = {"embed": "embedding", "neighbors": "search", "train": "base", "tune": "tuning", "synthesize": "generation"}
KINDS = ("embedding", "search", "base", "tuning", "generation", "training")


class Node(Protocol):
    """What is read of the graph's nodes."""

    @property
    def stage(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, str]: ...
    @property
    def config(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Entry:
    """A stage instance that a run is charged for.

    Attributes:
      instance: such as "synthesized".
      kind: one of `KINDS`.
      part: of its operations that are charged; below 1 where it wrote more synthetic text than the run asked for.
      vectors: of a search, the instance that made the vectors.
    """

    instance: str
    kind: str
    part: float = 1.0
    vectors: str | None = None


@dataclass(frozen=True)
class Charges:
    """Operations by kind.

    Attributes:
      notes: what is not in them though it was computed, in words.
    """

    embedding: float = 0.0
    search: float = 0.0
    base: float = 0.0
    tuning: float = 0.0
    generation: float = 0.0
    training: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(getattr(self, kind) for kind in KINDS)


def entries(nodes: Mapping[str, Node], run: str) -> tuple[Entry, ...]:
    """What a training run is charged for: those of its ancestors in the graph, itself included, that compute much.

    Inputs whose role begins with `CHARGED` are no ancestors. Generation is charged by the documents that the run's own
    share of synthetic tokens asks for: those written for the greater share of another arm are not its own.

    Args:
      nodes: of the graph, at least the ancestors.
      run: name of the instance, such as "train-sbp-0".
    """
    found: dict[str, Entry] = {}

    @cache
    def walk(name: str, share: float) -> None:
        node = nodes[name]
        if node.stage == "train":
            share = float(node.config.get("synthetic_share", 0.0))
        if node.stage in STAGES:
            kind, part = ("training" if name == run else STAGES[node.stage]), 1.0
            if node.stage == "synthesize":
                part = min(1.0, share / node.config["share"])
            if name in found:
                part = max(part, found[name].part)
            found[name] = Entry(name, kind, part, node.inputs.get("embeddings"))
        for role, parent in node.inputs.items():
            if not role.startswith(CHARGED):
                walk(parent, share)

    walk(run, 0.0)
    return tuple(found[name] for name in nodes if name in found)


def roles(charged: tuple[Entry, ...]) -> dict[str, str]:
    """The inputs of a stage that `charges` needs, by role."""
    return {f"{CHARGED}{entry.instance}": entry.instance for entry in charged}


def charges(charged: tuple[Entry, ...], artifacts: Mapping[str, Artifact], model: Model, vocabulary: int) -> Charges:
    """The operations of a run.

    Args:
      charged: from `entries`.
      artifacts: by the roles of `roles`; others are of no account.
      model: the decoder, one for the base model, the synthesizer and the arms.
      vocabulary: entries of the tokenizer.
    """
    sums, notes = dict.fromkeys(KINDS, 0.0), []
    kinds = {entry.kind for entry in charged}
    if "tuning" in kinds and "base" not in kinds:
        notes.append("the model that the synthesizer starts from was given; its pretraining is not counted")
    for entry in charged:
        artifact = artifacts[CHARGED + entry.instance]
        vectors = artifacts[CHARGED + entry.vectors] if entry.vectors else None
        made, note = operations(artifact, model, vocabulary, vectors)
        sums[entry.kind] += entry.part * made
        if note is not None:
            notes.append(f"{entry.instance}: {note}")
    return Charges(**sums, notes=tuple(notes))


def operations(
    artifact: Artifact, model: Model, vocabulary: int, vectors: Artifact | None = None
) -> tuple[float, str | None]:
    """The operations that made one artifact, and what is not in them.

    Args:
      vectors: of a search, the embeddings.
    """
    stage, stats, config = artifact.recipe["stage"], artifact.stats, artifact.recipe["config"]
    if stage in ("train", "tune"):
        optimization = config["training" if stage == "train" else "tuning"]
        positions = stats["steps"] * optimization["batch_rows"] * optimization["context"]
        return positions * flops_per_token(model, vocabulary, optimization["context"]), None
    if stage == "synthesize":
        if "prompt_tokens" not in stats:
            note = "made by a version that did not count prompts, so that new tokens alone are charged, no attention"
            return formulas.generation(model, vocabulary, 0, stats["new_tokens"], 0), note
        counted = (stats[name] for name in ("prompt_tokens", "new_tokens", "squared_tokens"))
        return formulas.generation(model, vocabulary, *counted), None
    if stage == "embed":
        if "token_flops" not in stats:
            return 0.0, "made by a version that did not count tokens; nothing is charged"
        if not stats["token_flops"]:
            return 0.0, "the vectors were given; what they took is not known"
        return stats["tokens"] * stats["token_flops"] + stats["squared_tokens"] * stats["square_flops"], None
    assert stage == "neighbors" and vectors is not None, stage
    return formulas.search(stats, vectors.stats["width"], artifact.rows), None


def allowance(total: float, model: Model, vocabulary: int, context: int) -> int:
    """Tokens that an arm without synthetic text may train on for so many operations in all."""
    return int(total / flops_per_token(model, vocabulary, context))
