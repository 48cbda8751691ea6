"""Losses on the way: a curve for each arm over tokens and over operations, and where it crosses that of repetition."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from sbp_jax.config import BASE_ARM
from sbp_jax.report import charts
from sbp_jax.report.charts import Series
from sbp_jax.report.results import Curve, Results, curve
from sbp_jax.report.svg import compact

BEGINNING = 0.2  # of a run, whose losses need not be in the picture
TOKENS, OPERATIONS, LOSS = "training tokens", "operations, all stages", "nats per token"


@dataclass(frozen=True)
class Crossings:
    """Where the loss of an arm meets that of repetition.

    Attributes:
      places: at which they are equal, in order.
      below_from: from which on the arm is below at every validation; None: it ends no lower.
      compared: whether there is anywhere that both have a loss.
    """

    places: tuple[float, ...]
    below_from: float | None
    compared: bool = True


def crossings(x: np.ndarray, difference: np.ndarray) -> Crossings:
    """Where a difference of two losses, on straight lines between its places, changes its sign."""
    if len(x) == 0:
        return Crossings((), None, False)
    below = difference < 0
    places = []
    for turn in (np.flatnonzero(below[1:] != below[:-1]) + 1).tolist():
        before, after = difference[turn - 1], difference[turn]
        places.append(float(x[turn - 1] + (x[turn] - x[turn - 1]) * before / (before - after)))
    if not below[-1]:
        return Crossings(tuple(places), None)
    return Crossings(tuple(places), places[-1] if places else float(x[0]))


def sentences(met: Mapping[str, Crossings], unit: str) -> list[str]:
    """Where each arm is the better one, in words; arms of which the same is to be said share a sentence."""
    groups: dict[str, list[str]] = {}
    for arm, found in met.items():
        groups.setdefault(_said(found, unit), []).append(arm)
    told = []
    for said, arms in groups.items():
        names = arms[0] if len(arms) == 1 else f"{', '.join(arms[:-1])} and {arms[-1]}"
        told.append(f"The {names} arm: {said}." if len(arms) == 1 else f"The arms {names}: {said}.")
    return told


def _said(found: Crossings, unit: str) -> str:
    if not found.compared:
        return f"trained only after as many {unit} as {BASE_ARM} took in all"
    if found.below_from is None:
        return f"in the end no lower than {BASE_ARM}" + (", though below it on the way" if found.places else "")
    if not found.places:
        return f"below {BASE_ARM} at every validation"
    times = f", after {len(found.places)} crossings" if len(found.places) > 1 else ""
    return f"below {BASE_ARM} from {compact(found.below_from)} {unit} on{times}"


def arm_charts(results: Results, summary: dict[str, Any], colors: Mapping[str, int]) -> dict[str, Any]:
    """Charts of the arms' losses, and in words where they cross; of several seeds the mean, with a band of all.

    Returns:
      Markup by `validation`, `difference`, `operations` and `training`, None where there is nothing to draw, and
      sentences by `crossings` and `crossings_operations`.
    """
    names = [row["arm"] for row in summary["arms"] if row["sweep"] is None]
    curves = {name: [curve(run) for run in results.trained[name].values()] for name in names}
    spent = {row["arm"]: (row["flops"]["total"] - row["flops"]["training"], row["flops"]) for row in summary["compute"]}
    validation = {name: _validation(name, colors[name], curves[name]) for name in names}
    training = [_training(name, colors[name], curves[name]) for name in names]
    made: dict[str, Any] = {"difference": None, "operations": None, "crossings_operations": []}
    made["training"] = _chart(training, "Training loss against training tokens, smoothed", TOKENS)
    met = {name: _met(validation[name], validation[BASE_ARM]) for name in names if name != BASE_ARM}
    marked = {name: _ringed(validation[name], met.get(name), "tokens") for name in names}
    made["validation"] = _chart(marked.values(), "Validation loss against training tokens", TOKENS)
    made["crossings"] = sentences(met, "tokens")
    if met:
        title = f"Validation loss minus that of {BASE_ARM}"
        lines = [_minus(validation[name], validation[BASE_ARM]) for name, found in met.items() if found.compared]
        lines = [_ringed(line, met[line.name], "tokens") for line in lines]
        if lines:
            made["difference"] = charts.line_chart(lines, title, TOKENS, LOSS, zero=f"0 = {BASE_ARM}")
    if spent.keys() >= set(names):
        paid = {}
        for name, losses in validation.items():
            before, flops = spent[name]
            paid[name] = replace(losses, x=before + flops["training"] * losses.x / losses.x[-1])
        met = {name: _met(paid[name], paid[BASE_ARM]) for name in names if name != BASE_ARM}
        lines = [_ringed(paid[name], met.get(name), "operations") for name in names]
        made["operations"] = _chart(lines, "Validation loss against operations of all stages", OPERATIONS)
        made["crossings_operations"] = sentences(met, "operations")
    return made


def synthesizer_chart(results: Results) -> Markup:
    losses = curve(results.synthesizer)
    lines = [
        Series("training", 0, *charts.smoothed(losses.tokens, losses.training)),
        Series("validation", 1, losses.validated, losses.validation),
    ]
    return charts.line_chart(lines, "Pair loss of the synthesizer", "tokens of second documents", LOSS)


def _validation(name: str, color: int, curves: list[Curve]) -> Series:
    """The mean over seeds, with a band from the least to the greatest."""
    x = curves[0].validated
    losses = np.stack([np.interp(x, entry.validated, entry.validation) for entry in curves])
    band = (losses.min(axis=0), losses.max(axis=0)) if len(curves) > 1 else (None, None)
    return Series(name, color, x, losses.mean(axis=0), *band)


def _training(name: str, color: int, curves: list[Curve]) -> Series:
    x, _ = charts.smoothed(curves[0].tokens, curves[0].training)
    means = [np.interp(x, *charts.smoothed(entry.tokens, entry.training)) for entry in curves]
    return Series(name, color, x, np.mean(means, axis=0))


def _minus(ours: Series, base: Series) -> Series:
    """The difference at those places of ours that the other curve reaches."""
    both = (ours.x >= base.x[0]) & (ours.x <= base.x[-1])
    x = ours.x[both]
    return Series(ours.name, ours.color, x, ours.y[both] - np.interp(x, base.x, base.y))


def _met(ours: Series, base: Series) -> Crossings:
    difference = _minus(ours, base)
    return crossings(difference.x, difference.y)


def _ringed(ours: Series, found: Crossings | None, unit: str) -> Series:
    """The line with a ring where it crosses that of repetition for good."""
    if found is None or not found.places or found.below_from is None:
        return ours
    place = found.below_from
    says = f"{ours.name} stays below {BASE_ARM} from {compact(place)} {unit} on"
    return replace(ours, marked=((place, float(np.interp(place, ours.x, ours.y)), says),))


def _chart(lines: Iterable[Series], title: str, x_label: str) -> Markup:
    """Losses, whose steep beginning is cut off so that their ends can be told apart."""
    lines = list(lines)
    late = [line.y[line.x >= line.x[0] + BEGINNING * (line.x[-1] - line.x[0])] for line in lines]
    return charts.line_chart(lines, title, x_label, LOSS, y_high=float(max(part.max() for part in late)))
