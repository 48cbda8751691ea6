"""Stage `report`: what the experiment found, as numbers (`summary.json`) and as a page (`report.html`)."""

import json

from sbp_jax.arms import trained_arms
from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Execution, Experiment
from sbp_jax.report.page import render
from sbp_jax.report.results import Results
from sbp_jax.report.summary import summarize

VERSION = 3


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
    experiment: Experiment,
    source: str,
    execution: Execution,
    **arms: Artifact,
) -> Artifact:
    """Writes the summary and the page; the same artifacts give the same bytes.

    Args:
      source: the experiment as a config file.
      arms: "trained/<arm>/<seed>" and "scored/<arm>/<seed>" for every arm and seed, those of its sweep included.
    """

    def of_arms(role: str) -> dict[str, dict[int, Artifact]]:
        return {
            entry.arm.name: {seed: arms[f"{role}/{entry.arm.name}/{seed}"] for seed in entry.seeds}
            for entry in trained_arms(experiment)
        }

    made = (documents, splits, neighbors, screened, pairs, synthesizer, synthesized, synthetic)
    results = Results(experiment, *made, of_arms("trained"), of_arms("scored"))
    summary = summarize(results)
    with output.writing("summary.json") as writing:
        writing.path.write_text(json.dumps(summary, indent=1, ensure_ascii=False))
    with output.writing("report.html") as writing:
        writing.path.write_text(render(summary, results, source))
    return output.finish({"warnings": len(summary["warnings"])})
