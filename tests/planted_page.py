"""The page of a planted run that has everything, its documents hostile and long."""

from pathlib import Path
from typing import Any

from sbp_jax.report import page
from sbp_jax.report.results import Results
from sbp_jax.report.source import to_source
from sbp_jax.report.summary import summarize
from tests import planted_summary
from tests.test_report import make

HOSTILE = (
    "</script><script>parent.hacked = 1</script>",
    '<img src="https://example.com/x.png" onerror="parent.hacked = 1">',
    "&lt;b&gt;kept as it is&lt;/b&gt; &amp; <!-- <b> --> \u2028\u2029 \U0001f30a",
    "-->]]>'\"`${parent.hacked = 1}",
)
SHARED = "the tide that turns at noon carries every small boat out of the old harbour"
SEEDS = 16  # documents that seeds are taken from
NAMES = ("documents", "splits", "neighbors", "screened", "pairs", "synthesizer", "synthesized", "synthetic")


def texts() -> list[str]:
    """Forty documents; each has a word of its own."""
    return [f"{HOSTILE[number % 4]} Document number{number} of ships. {SHARED}." for number in range(40)]


def synthetic() -> list[str]:
    """Every third one copies a run that its seed has."""
    return [
        f"Written{number} {HOSTILE[number % 4]} about boats. {SHARED if number % 3 == 0 else 'Nothing is copied here.'}"
        for number in range(40)
    ]


def render(folder: Path, real: list[str] | None = None, written: list[str] | None = None) -> tuple[dict[str, Any], str]:
    """Summary and page; the artifacts lie in `folder`."""
    experiment = planted_summary.EXPERIMENT
    chosen = {"texts": real or texts(), "synthetic": written or synthetic(), "losses": planted_summary.LOSSES}
    inputs = make(folder, experiment, **chosen)
    trained, scored = (
        {arm.name: {seed: inputs[f"{role}/{arm.name}/{seed}"] for seed in experiment.seeds} for arm in experiment.arms}
        for role in ("trained", "scored")
    )
    results = Results(experiment, *(inputs[name] for name in NAMES), trained, scored)
    summary = planted_summary.fill(summarize(results))
    return summary, page.render(summary, results, to_source(experiment))
