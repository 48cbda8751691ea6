"""The report as one HTML page that needs nothing but itself."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from sbp_jax.artifacts import parquet
from sbp_jax.config import BASE_ARM, ORACLE_ARM
from sbp_jax.report import charts, pair_page, pair_samples
from sbp_jax.report.charts import Interval, Series
from sbp_jax.report.examples import RUN, marked, shortened
from sbp_jax.report.results import Curve, Results, curve, sample_texts
from sbp_jax.report.summary import answers
from sbp_jax.text.repetition import repetition
from sbp_jax.text.shingles import words

LENGTH_BINS = 16
PAIRS = 2  # shown of each verdict


def render(summary: dict[str, Any], results: Results, source: str) -> str:
    """The page, from the summary and the artifacts that charts and examples need; a function of these alone."""
    closed = [gap for gap in summary["gaps"] if gap["set"] == "test" and gap["closed"] is not None]
    summary = summary | {"gaps": closed, "seeds": len(summary["seeds"])}
    told = answers(summary | {"seeds": [0] * summary["seeds"]})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": "{:,}".format, "compact": charts.compact, "loss": "{:.4f}".format}
    environment.filters |= {"percent": _percent, "short": shortened, "label": _label}
    environment.globals |= {"marked": marked} | pair_page.GLOBALS
    colors = {arm.name: place % charts.COLORS for place, arm in enumerate(results.experiment.arms)}
    context = {
        "summary": summary,
        "experiment": results.experiment,
        "answers": told,
        "headline": _headline(summary),
        "colors": colors,
        "gap_chart": _gap_chart(summary, colors),
        "curves": _arm_charts(results, colors),
        "crossings": _crossings(results),
        "pairs": summary["pairs"],
        "pair_charts": pair_page.pair_charts(summary["pairs"]),
        "pair_samples": pair_samples.sample(results.pairs, results.documents, PAIRS),
        "synthesizer_chart": _synthesizer_chart(results),
        "quality": None if results.synthetic is None else _quality(results),
        "corpus_files": results.documents.recipe["config"].get("files", []),
        "source": source,
        "run": RUN,
    }
    return environment.get_template("page.html").render(context)


def _headline(summary: dict[str, Any]) -> str:
    """The result in a few words."""
    if summary["oracle_gain"]["low"] <= 0:
        return "The gap is undefined"
    if not summary["gaps"]:
        return f"{ORACLE_ARM.capitalize()} against {BASE_ARM}"
    if len(summary["gaps"]) == 1:
        gap = summary["gaps"][0]
        if gap["low"] <= 0:
            return f"The {gap['arm']} arm {'is worse than' if gap['high'] < 0 else 'cannot be told from'} {BASE_ARM}"
        return f"The {gap['arm']} arm closed {_percent(gap['closed'], 0)} of the gap"
    return "Gap closed: " + ", ".join(f"{gap['arm']} {_percent(gap['closed'], 0)}" for gap in summary["gaps"])


def _gap_chart(summary: dict[str, Any], colors: dict[str, int]) -> Markup | None:
    gaps = [gap for gap in summary["gaps"] if gap["closed"] is not None]
    if not gaps:
        return None
    percents = [[100 * gap[name] for name in ("closed", "low", "high")] for gap in gaps]
    values = [Interval(gap["arm"], colors[gap["arm"]], *percent) for gap, percent in zip(gaps, percents, strict=True)]
    return charts.interval_chart(values, "Gap closed by each arm, with 95% intervals", BASE_ARM, ORACLE_ARM)


def _arm_charts(results: Results, colors: dict[str, int]) -> dict[str, Markup]:
    """Validation loss, its difference to repetition, and training loss; one line for each arm and seed."""
    validation, training, difference = [], [], []
    for arm in results.experiment.arms:
        color = colors[arm.name]
        for seed, artifact in results.trained[arm.name].items():
            name = arm.name if len(results.trained[arm.name]) == 1 else f"{arm.name}, seed {seed}"
            losses = curve(artifact)
            validation.append(Series(name, color, losses.validated, losses.validation))
            training.append(Series(name, color, *charts.smoothed(losses.tokens, losses.training)))
        if arm.name != BASE_ARM:
            difference.append(Series(arm.name, color, *_difference(results, arm.name)))
    x_label, y_label = "training tokens", "nats per token"
    made = {
        "validation": charts.line_chart(validation, "Validation loss against training tokens", x_label, y_label),
        "training": charts.line_chart(training, "Training loss against training tokens, smoothed", x_label, y_label),
    }
    if difference:
        title = f"Validation loss minus that of {BASE_ARM}"
        made["difference"] = charts.line_chart(difference, title, x_label, y_label, zero=f"0 = {BASE_ARM}")
    return made


def _difference(results: Results, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and the validation loss of an arm minus that of repetition, both means over seeds."""
    ours, base = ([curve(artifact) for artifact in results.trained[name].values()] for name in (arm, BASE_ARM))
    tokens = ours[0].validated
    return tokens, _mean_at(tokens, ours) - _mean_at(tokens, base)


def _mean_at(tokens: np.ndarray, curves: Iterable[Curve]) -> np.ndarray:
    return np.mean([np.interp(tokens, losses.validated, losses.validation) for losses in curves], axis=0)


def _crossings(results: Results) -> list[str]:
    """For each arm but repetition, in words: from where on it is the better one."""
    sentences = []
    for arm in results.experiment.arms:
        if arm.name == BASE_ARM:
            continue
        tokens, difference = _difference(results, arm.name)
        worse = np.flatnonzero(difference >= 0)
        if len(worse) == 0:
            sentences.append(f"the {arm.name} arm is below {BASE_ARM} at every validation")
        elif worse[-1] == len(difference) - 1:
            sentences.append(f"the {arm.name} arm ends no lower than {BASE_ARM}")
        else:
            crossed = charts.compact(float(tokens[worse[-1] + 1]))
            sentences.append(f"the {arm.name} arm stays below {BASE_ARM} from {crossed} tokens on")
    return sentences


def _synthesizer_chart(results: Results) -> Markup:
    losses = curve(results.synthesizer)
    lines = [
        Series("training", 0, *charts.smoothed(losses.tokens, losses.training)),
        Series("validation", 1, losses.validated, losses.validation),
    ]
    return charts.line_chart(lines, "Pair loss of the synthesizer", "tokens of second documents", "nats per token")


def _quality(results: Results) -> dict[str, Any]:
    """Lengths, repetition and copying of synthetic documents, beside a sample of the capped ones."""
    assert results.synthetic is not None
    columns = ["words", "repetition", "copied"]
    accepted = parquet.read(results.synthetic, columns)
    rejected = list(parquet.tables(results.synthetic, columns, prefix="rejected"))
    real = words(list(sample_texts(results.documents, results.splits, "capped")))
    groups = {
        "real": (np.diff(real.offsets), repetition(real), None),
        "accepted": tuple(accepted[name].to_numpy() for name in columns),
        "rejected": tuple(np.concatenate([[], *(table[name].to_numpy() for table in rejected)]) for name in columns),
    }
    rows = [
        {
            "group": name,
            "documents": len(lengths),
            "words": float(np.median(lengths)) if len(lengths) else None,
            "repetition": float(np.mean(repeated)) if len(lengths) else None,
            "copied": float(np.mean(copied)) if copied is not None and len(lengths) else None,
        }
        for name, (lengths, repeated, copied) in groups.items()
    ]
    return {"rows": rows, "lengths": _lengths(groups["real"][0], groups["accepted"][0])}


def _lengths(real: np.ndarray, synthetic: np.ndarray) -> Markup:
    """Histogram of the words of real and synthetic documents; all longer ones stand in the last bin."""
    longest = max(np.quantile(real, 0.98), np.quantile(synthetic, 0.98))
    step = max(5, 5 * math.ceil(longest / LENGTH_BINS / 5))
    edges = np.arange(0, step * (LENGTH_BINS + 1), step)
    groups = [
        (name, np.histogram(np.clip(words, 0, edges[-1]), edges)[0] / len(words))
        for name, words in (("real (capped)", real), ("synthetic, accepted", synthetic))
    ]
    title, x_label = "Words of a document, real and synthetic", "words (all longer ones in the last bin)"
    return charts.histogram(groups, edges, title, x_label, "share of documents")


def _percent(value: float, decimals: int = 1) -> str:
    return f"{100 * value:.{decimals}f}%".replace("-", "−")


def _label(name: str) -> str:
    """A verdict or a split's name as words."""
    return name.replace("_", " ")
