"""The report as one HTML page that needs nothing but itself."""

from typing import Any

from sbp_jax.report import answer, curves, lineage, pair_page, pair_samples, sections, triples_page
from sbp_jax.report.environment import environment
from sbp_jax.report.examples import marked, shortened
from sbp_jax.report.results import Results
from sbp_jax.report.svg import COLORS
from sbp_jax.report.triples import triples

PAIRS = 2  # shown of each verdict


def render(summary: dict[str, Any], results: Results, source: str) -> str:
    """The page, from the summary and the artifacts that charts and examples need; a function of these alone."""
    made = environment()
    made.filters["short"] = shortened
    made.globals |= {"marked": marked, "asked": answer.asked, "pieces": triples_page.pieces} | pair_page.GLOBALS
    arms = [row for row in summary["arms"] if row["sweep"] is None]
    colors = {row["arm"]: place % COLORS for place, row in enumerate(arms)}
    context = {
        "summary": summary,
        "experiment": results.experiment,
        "headline": answer.headline(summary),
        "cards": answer.cards(summary),
        "gaps": answer.rows(summary),
        "reasons": answer.reasons(summary),
        "differences": answer.differences_chart(summary, colors),
        "arms": arms,
        "colors": colors,
        "curves": curves.arm_charts(results, summary, colors),
        "shares_chart": sections.shares_chart(summary),
        "repetition": sections.repetition_grid(summary),
        "operations_chart": sections.operations_chart(summary),
        "operation_steps": sections.STEPS,
        "pairs": summary["pairs"],
        "pair_charts": pair_page.pair_charts(summary["pairs"]),
        "pair_samples": pair_samples.sample(results.pairs, results.documents, PAIRS),
        "synthesizer_chart": curves.synthesizer_chart(results),
        "lengths_chart": sections.lengths_chart(results),
        "distances": [sections.distances(measured) for measured in summary["quality"]],
        "lineage": lineage.artifacts(results),
        "corpus_files": results.documents.recipe["config"].get("files", []),
        "source": source,
    }
    found = triples(results.synthetic, results.pairs, results.documents) if results.synthetic is not None else []
    context["triples"], context["triples_data"] = triples_page.shown(found)
    context |= {"run": triples_page.RUN, "limit": triples_page.LIMIT, "static": triples_page.STATIC}
    return made.get_template("page.html").render(context)
