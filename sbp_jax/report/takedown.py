"""Everything that came from some real documents: pairs, tuning, synthetic documents, and the runs that read any of it.

A synthetic document came from a real one if that was read before it was written, or if it has a shingle of it.

All is read shard by shard and of each shard a few columns; what stays in memory is what is told.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sbp_jax.artifacts import Artifact
from sbp_jax.data.rows import SYNTHETIC
from sbp_jax.data.stream_order import finder
from sbp_jax.errors import SbpError
from sbp_jax.report.quotes import quoting
from sbp_jax.report.results import rows_at
from sbp_jax.report.trace import read_by
from sbp_jax.report.trail import Chain, Trail, holding, matching, real_at, real_by_id, rows, synthetic_by_id, unknown
from sbp_jax.report.training_examples import times

ACCEPTED = "accepted"
PARTS = ("train", "validation")  # of the groups
LOOKED_INTO = ("split", "pairs", "group", "tune", "synthesize", "filter", "pack", "train")
NAMED = 5  # unknown ids that an error names
Accepted = dict[int, tuple[str, list[int]]]  # synthetic documents by ordinal: the id, and the real ones it came from


def derived(trail: Trail, ids: Sequence[str], quick: bool = False) -> dict[str, Any]:
    """What came from real documents, as JSON values.

    Args:
      ids: of real documents; one given twice is told once.
      quick: leaves out what takes long: synthetic documents that quote a document without having read it, for which all
        of them are read, and the steps at which the runs read it, for which every place of each run is looked at.

    Returns:
      `documents`, in the order asked, each with `pairs`, `tuned`, `synthetic` and `trained` by stage instance, and
      `not_complete`, the instances that could not be looked into.

    Raises:
      SbpError: an id that no real document has, or documents that are not there yet.
    """
    documents = _found(trail, list(dict.fromkeys(ids)))
    told = {row["ordinal"]: row | {"split": None} for row in documents}
    ordinals = list(told)
    for name in trail.of_stage("split"):
        if (splits := trail.find(name)) is not None:
            for ordinal, row in zip(ordinals, rows_at(splits, ordinals, ["split"]), strict=True):
                told[ordinal]["split"] = row["split"]
    for entry in told.values():
        entry |= {"pairs": {}, "tuned": {}, "synthetic": {}, "trained": {}}
    for name in trail.of_stage("pairs"):
        if (pairs := trail.find(name)) is not None:
            _add_pairs(trail, pairs, name, told)
    for name in trail.of_stage("tune"):
        _add_tuned(trail, name, told)
    accepted: dict[str, Accepted] = {}
    texts = {} if quick else {row["ordinal"]: row["text"] for row in real_at(trail, ordinals)}
    for chain in trail.chains():
        accepted[chain.synthetic] = _add_synthetic(trail, chain, told, texts)
    for name in trail.of_stage("train"):
        if trail.find(name) is not None:
            _add_trained(trail, name, told, accepted, not quick)
    return {"documents": list(told.values()), "not_complete": trail.missing(*LOOKED_INTO)}


def _found(trail: Trail, ids: list[str]) -> list[dict[str, Any]]:
    columns = ("ordinal", "id", "source")
    found = real_by_id(trail, ids, columns)
    absent = [name for name in ids if name not in found]
    if len(absent) == 1 and any(synthetic_by_id(trail, chain, absent) for chain in trail.chains()):
        raise SbpError(f"{absent[0]} is a synthetic document; `sbp trace ... {absent[0]}` tells what it came from")
    if len(absent) == 1:
        raise unknown(trail, absent[0])
    if absent:
        more = "" if len(absent) <= NAMED else f" and {len(absent) - NAMED:,} others"
        raise SbpError(
            f"{len(absent):,} of {len(ids):,} ids are of no real document: {', '.join(absent[:NAMED])}{more}"
        )
    return [found[name] for name in ids]


def _add_pairs(trail: Trail, pairs: Artifact, name: str, told: dict[int, dict[str, Any]]) -> None:
    """The accepted pairs of each document with their other document, and how many are rejected, by verdict."""
    columns, ordinals = ["d1", "d2", "similarity", "verdict"], list(told)
    for side, other in (("d1", "d2"), ("d2", "d1")):
        kept: dict[int, list[dict[str, Any]]] = defaultdict(list)
        rejected: dict[int, Counter[str]] = defaultdict(Counter)
        for row in rows(matching(pairs, side, ordinals, columns)):
            if row["verdict"] == ACCEPTED:
                kept[row[side]].append({"ordinal": row[other], "similarity": row["similarity"]})
            else:
                rejected[row[side]][row["verdict"]] += 1
        partners = sorted({pair["ordinal"] for found in kept.values() for pair in found})
        ids = dict(zip(partners, (row["id"] for row in real_at(trail, partners, text=False)), strict=True))
        for ordinal, entry in told.items():
            accepted = [{"id": ids[pair["ordinal"]]} | pair for pair in kept[ordinal]]
            counted = {"accepted": accepted, "rejected": dict(rejected[ordinal].most_common())}
            entry["pairs"].setdefault(name, {})[f"as_{side}"] = counted


def _add_tuned(trail: Trail, name: str, told: dict[int, dict[str, Any]]) -> None:
    """How many groups read a document, and how many write it, in tuning and in its validation."""
    grouped = trail.nodes[trail.nodes[name].inputs["pairs"]].inputs["groups"]
    if trail.find(name) is None:
        return
    for entry in told.values():
        entry["tuned"][name] = {part: {"read": 0, "written": 0} for part in PARTS}
    for group in holding(trail.artifact(grouped), "target", list(told)):
        for use, ordinals in (("read", group["conditioning"]), ("written", [group["target"]])):
            for ordinal in told.keys() & set(ordinals):
                told[ordinal]["tuned"][name][group["part"]][use] += 1


def _add_synthetic(trail: Trail, chain: Chain, told: dict[int, dict[str, Any]], texts: Mapping[int, str]) -> Accepted:
    """Adds the synthetic documents that read a document, or quote one of the texts; returns the accepted ones."""
    kept = trail.find(chain.synthetic)
    artifact = trail.find(chain.synthesized) if kept is None else kept
    if artifact is None:
        return {}
    accepted: Accepted = {}
    groups: dict[int, dict[str, list[dict[str, Any]]]] = {
        ordinal: {ACCEPTED: [], "rejected": [], "not_filtered": []} for ordinal in told
    }
    for ordinal, entry in told.items():
        entry["synthetic"][chain.synthesized if kept is None else chain.synthetic] = groups[ordinal]
    for prefix in ("part", "rejected"):
        found: dict[int, tuple[dict[str, Any], dict[int, dict[str, Any]]]] = {}  # by ordinal: the row, and how of whom
        for row in holding(artifact, "seed", list(told), prefix):
            read = (ordinal for ordinal in read_by(row) if ordinal in told)
            found[row["ordinal"]] = row, {ordinal: {"read": True, "seed": row["seed"] == ordinal} for ordinal in read}
        for row in quoting(artifact, texts, prefix):
            of = found.setdefault(row["ordinal"], (row, {}))[1]
            for ordinal, number in row["shared"].items():
                of.setdefault(ordinal, {"read": False, "seed": False})["shared"] = number
        for place, (row, of) in sorted(found.items()):
            verdict = row["verdict"] if prefix == "rejected" else None if kept is None else ACCEPTED
            group = {None: "not_filtered", ACCEPTED: ACCEPTED}.get(verdict, "rejected")
            for ordinal, how in of.items():
                groups[ordinal][group].append({"id": row["id"], "ordinal": place, "verdict": verdict} | how)
            if verdict == ACCEPTED:
                accepted[place] = row["id"], list(of)
    return accepted


def _add_trained(
    trail: Trail, run: str, told: dict[int, dict[str, Any]], accepted: dict[str, Accepted], steps: bool
) -> None:
    """The rows of a run's streams that hold a document or one that was written from it, and when they were read."""
    inputs = trail.nodes[run].inputs
    standing: list[tuple[str, dict[str, Any]]] = []
    for rows_name in (inputs[role] for role in ("real", "synthetic", "megadoc") if role in inputs):
        find = finder(trail.artifact(rows_name))
        for document, whose, named in _owners(trail.nodes[rows_name].inputs, told, accepted):
            if held := list(find(document)):
                for owner in whose:
                    entry: dict[str, Any] = named | {"rows": held}
                    told[owner]["trained"].setdefault(run, {}).setdefault(rows_name, []).append(entry)
                    standing.append((rows_name, entry))
    if not steps or not standing:
        return
    wanted: dict[str, list[int]] = defaultdict(list)
    for rows_name, entry in standing:
        wanted[rows_name] += entry["rows"]
    when = times(trail, run, wanted)
    for rows_name, entry in standing:
        found = sorted(time for row in entry["rows"] for time in when[rows_name].get(row, []))
        entry["steps"] = [list(time) for time in found]


def _owners(
    inputs: Mapping[str, str], told: dict[int, dict[str, Any]], accepted: dict[str, Accepted]
) -> Iterator[tuple[int, list[int], dict[str, Any]]]:
    """Documents that may stand in some rows: as the rows name them, whom they came from, and their id and ordinal."""
    written = accepted.get(inputs["documents"])
    if written is None:
        for ordinal, entry in told.items():
            yield ordinal, [ordinal], {"id": entry["id"], "ordinal": ordinal}
    offset = SYNTHETIC if written is None else 0
    found = accepted.get(inputs.get("synthetic", ""), {}) if written is None else written
    for ordinal, (name, whose) in found.items():
        yield ordinal + offset, whose, {"id": name, "ordinal": ordinal}


def counted(entry: dict[str, Any]) -> dict[str, int]:
    """What came from one document, in numbers, for a table of many."""
    synthetic = [group for groups in entry["synthetic"].values() for group in groups.items()]
    return {
        "accepted_pairs": sum(len(side["accepted"]) for sides in entry["pairs"].values() for side in sides.values()),
        "tuned": sum(sum(parts.get("train", {}).values()) for parts in entry["tuned"].values()),
        "synthetic": sum(len(found) for _, found in synthetic),
        "accepted": sum(len(found) for group, found in synthetic if group == ACCEPTED),
        "runs": len(entry["trained"]),
    }
