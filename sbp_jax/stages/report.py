"""Stage `report`: what the experiment found, as numbers (`summary.json`) and as a page (`report.html`)."""

import json
from collections.abc import Mapping

from sbp_jax.accounting.charges import CHARGED, Entry
from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Execution, Experiment
from sbp_jax.report.page import render
from sbp_jax.report.results import Results
from sbp_jax.report.summary import summarize

VERSION = 6


def run(
    output: Output,
    *,
    documents: Artifact,
    splits: Artifact,
    neighbors: Artifact,
    screened: Artifact,
    pairs: Artifact,
    synthesizer: Artifact,
    synthesized: Artifact | None = None,
    synthetic: Artifact | None = None,
    tokenizer: Artifact | None = None,
    experiment: Experiment,
    source: str,
    charges: tuple[tuple[str, tuple[Entry, ...]], ...] = (),
    execution: Execution,
    **more: Artifact,
) -> Artifact:
    """Writes the summary and the page; the same artifacts give the same bytes.

    Args:
      source: the experiment as a config file.
      charges: for each arm what its first run is charged for.
      more: "trained/<arm>/<seed>" and "scored/<arm>/<seed>" for every arm and seed, those of its sweep included; as
        "text/<set>/<arm>/<seed>" and "task/<task>/<arm>/<seed>" what they score on text sets and tasks;
        "copies/<set>" what of a set was trained on; "quality/<suffix>" for each source of synthetic text; and the
        artifacts of `charges` by their roles.
    """
    made = (documents, splits, neighbors, screened, pairs, synthesizer, synthesized, synthetic)
    results = Results(
        experiment,
        *made,
        _runs(more, "trained"),
        _runs(more, "scored"),
        {name: _runs(more, f"text/{name}") for name in _names(more, "text")},
        {name: _runs(more, f"task/{name}") for name in _names(more, "task")},
        {suffix: more[f"quality/{suffix}"] for suffix in _names(more, "quality")},
        dict(charges),
        {role: artifact for role, artifact in more.items() if role.startswith(CHARGED)},
        tokenizer,
        {name: more[f"copies/{name}"] for name in _names(more, "copies")},
    )
    summary = summarize(results)
    with output.writing("summary.json") as writing:
        writing.path.write_text(json.dumps(summary, indent=1, ensure_ascii=False))
    with output.writing("report.html") as writing:
        writing.path.write_text(render(summary, results, source))
    return output.finish({"warnings": len(summary["warnings"])})


def _names(inputs: Mapping[str, Artifact], kind: str) -> list[str]:
    """The second part of the roles that begin with `kind`."""
    parts = (role.split("/") for role in inputs)
    return list(dict.fromkeys(part[1] for part in parts if part[0] == kind))


def _runs(inputs: Mapping[str, Artifact], start: str) -> dict[str, dict[int, Artifact]]:
    """By arm and seed, the artifacts with roles "<start>/<arm>/<seed>"."""
    found: dict[str, dict[int, Artifact]] = {}
    for role, artifact in inputs.items():
        kind, _, seed = role.rpartition("/")
        kind, _, arm = kind.rpartition("/")
        if kind == start:
            found.setdefault(arm, {})[int(seed)] = artifact
    return found
