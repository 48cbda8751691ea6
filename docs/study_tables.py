"""Writes the tables and figures of docs/study.md anew, from the records in docs/study.

.venv/bin/python docs/study_tables.py
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from sbp_jax.config import ORACLE_ARM
from sbp_jax.scoring.draws import Estimate
from sbp_jax.study.grid import recorded
from sbp_jax.study.tables import Record, Runs, mean, shown

HERE = Path(__file__).parent
PAGE, FOLDER = HERE / "study.md", HERE / "study"
NAMES = {
    "repetition": "repetition",
    "repetition_early": "repetition, stopped early",
    "self_samples": "self samples",
    "random_pairs": "random pairs",
    "sbp": "SBP",
    "megadoc": "SBP, megadocs",
    "staged": "SBP, real text last",
    "in_context": "real pairs in one context, no synthetic text",
    "multi_round": "SBP, second round",
    "oracle": "oracle",
}
COLORS = ("#1b6ca8", "#c2571a", "#3c8d40")


@dataclass(frozen=True)
class View:
    """What the page tells of a file of records.

    Attributes:
      name: of the file, and of the marks around its tables.
      texts: the texts whose losses are told.
      varied: those of them in tables of what is varied.
      known: what those tables tell of pairs and synthetic text, by where it stands in a record.
      unit: of their losses.
    """

    name: str
    texts: Mapping[str, str]
    varied: tuple[str, ...]
    known: Mapping[tuple[str, str], str]
    unit: str

    @property
    def records(self) -> list[Record]:
        return recorded(FOLDER / f"{self.name}.jsonl")

    def runs(self, records: Sequence[Record], *settings: str) -> Runs:
        return Runs.of(records, *settings, unit=self.unit)


CONCEPTS = View(
    "concepts",
    {"test": "all tokens", "facts": "facts", "recall": "facts in new wordings"},
    ("test", "facts"),
    {
        ("pairs", "pairs"): "pairs",
        ("pairs", "precision"): "of one concept",
        ("synthetic", "true"): "true, of stated facts",
    },
    "nats_per_token",
)
TEXT = View(
    "text",
    {"test": "documentation", "wikipedia": "Wikipedia"},
    ("test", "wikipedia"),
    {("pairs", "pairs"): "pairs", ("pairs", "precision"): "of one family"},
    "bits_per_byte",
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def closed(found: Estimate | None) -> str:
    return "undefined" if found is None else shown(found, percent=True)


def grid(view: View, records: Sequence[Record]) -> str:
    """Losses of the repetition arm by weight decay, passes and dropout."""
    rows = []
    for line in records:
        kind, *point = line["setting"].split("/")
        if kind == "repetition":
            rows.append(
                [*point, str(line["steps"]), *(f"{line['losses'][text][view.unit]:.3f}" for text in view.texts)]
            )
    rows.sort(key=lambda row: (float(row[0]), float(row[2]), int(row[3])))
    return table(["weight decay", "passes", "dropout", "steps", *view.texts.values()], rows)


def arms(view: View, records: Sequence[Record]) -> str:
    """Mean losses of the arms, and the gap that each closes on each text."""
    runs, rows = view.runs(records, "main"), []
    for arm in (arm for arm in NAMES if arm in runs.arms):
        row = [NAMES[arm], str(len(runs.arms[arm]))]
        for text in view.texts:
            row += [shown(runs.losses(text, arm)[0].estimate), "" if _is_end(arm) else closed(runs.gap(text, arm))]
        rows.append(row)
    return table(["arm", "seeds", *(cell for name in view.texts.values() for cell in (name, "gap closed"))], rows)


def _is_end(arm: str) -> bool:
    return arm.startswith("repetition") or arm == ORACLE_ARM


def differences(view: View, records: Sequence[Record]) -> str:
    """SBP minus every other arm, of the same seeds."""
    runs = view.runs(records, "main")
    others = [arm for arm in NAMES if arm in runs.arms and arm != "sbp"]
    rows = [[NAMES[arm], *(shown(runs.difference(text, "sbp", arm).estimate) for text in view.texts)] for arm in others]
    return table(["SBP minus", *view.texts.values()], rows)


def truth(view: View, records: Sequence[Record]) -> str:
    """What pairs and synthetic documents are."""
    runs, rows = view.runs(records, "main"), []
    for arm in ("sbp", "random_pairs", "self_samples"):
        told = [line["synthetic"] for line in runs.arms.get(arm, {}).values()]
        if not told:
            continue
        row = [NAMES[arm]]
        for part, name in TOLD:
            values = [line[part][name] for line in told if part in line]
            percent = name not in ("pairs", "documents", "facts")
            row.append(_number(values, percent) if values else "")
        rows.append(row)
    return table(["text of", *(HEADS[name] for _, name in TOLD)], rows)


def _number(values: Sequence[float], percent: bool) -> str:
    return f"{100 * np.mean(values):.0f}%" if percent else f"{np.mean(values):,.1f}".removesuffix(".0")


TOLD = [("pairs", name) for name in ("pairs", "precision", "recall")]
TOLD += [("synthetic", name) for name in ("documents", "on_concept", "true", "new", "told", "copies")]
HEADS = {
    "pairs": "pairs",
    "precision": "of one concept",
    "recall": "of all such pairs",
    "documents": "documents kept",
    "on_concept": "about the seed's concept alone",
    "true": "true, of stated facts",
    "new": "new wording, of true ones",
    "told": "wordings told, of all there are",
    "copies": "copies",
}


def costs(view: View, records: Sequence[Record]) -> str:
    """Nats of a held-out document behind a related one, an unrelated one, and nothing."""
    runs, rows = view.runs(records, "main"), []
    for arm in ("sbp", "random_pairs"):
        told = [line["synthetic"]["costs"] for line in runs.arms.get(arm, {}).values()]
        if told:
            rows.append([NAMES[arm], *(shown(mean([line[name] for line in told]).estimate) for name in told[0])])
    head = ("alone", "behind another concept's", "behind a related one", "newcomer's bound", "entropy")
    return table(["synthesizer", *head], rows)


def quality(view: View, records: Sequence[Record]) -> str:
    """The measures of synthetic documents as they were generated, beside real ones; means over seeds."""
    runs, rows = view.runs(records, "main"), []
    made = [("real documents", "sbp", "real"), *((NAMES[arm], arm, "generated") for arm in WRITERS)]
    for name, arm, group in made:
        told = [line["synthetic"]["quality"] for line in runs.arms.get(arm, {}).values()]
        chosen = [row for table in told for row in table if row["group"] == group]
        if chosen:
            rows.append([name, *(_measure([row[measure] for row in chosen], measure) for measure in MEASURES)])
    return table(["text of", *MEASURES.values()], rows)


def _measure(values: Sequence[float | None], measure: str) -> str:
    known = [value for value in values if value is not None]
    return _number(known, measure != "words") if known else ""


WRITERS = ("sbp", "random_pairs", "self_samples", "multi_round")
MEASURES = {
    "repetition_rate": "repetition",
    "duplicates": "Duplicate@N",
    "unrelated": "pair irrelevance",
    "pair_copying": "pair copying",
    "corpus_copying": "corpus copying",
    "novel_1": "words of its own",
    "words": "words",
}


def operations(view: View, records: Sequence[Record]) -> str:
    """Tokens and operations of each arm, and the losses of repetition and oracle at the operations of SBP."""
    runs = view.runs(records, "main", "flops")
    names, rows = {**NAMES, **{f"{arm}_flops": f"{NAMES[arm]}, at the operations of SBP" for arm in ENDS}}, []
    for arm in (arm for arm in names if arm in runs.arms):
        lines = runs.arms[arm].values()
        own = [str(len(lines)), f"{np.mean([line['tokens'] for line in lines]) / 1e6:.2f}"]
        own.append(f"{np.mean([line['flops'] for line in lines]) / 1e12:.1f}")
        rows.append([names[arm], *own, *(shown(runs.losses(text, arm)[0].estimate) for text in view.texts)])
    return table(["arm", "seeds", "tokens, millions", "operations, 10^12", *view.texts.values()], rows)


ENDS = ("repetition", "oracle")


def sweep(view: View, records: Sequence[Record], kind: str, label: str) -> str:
    """Losses at each value of what is varied, and what is true of the pairs and of the synthetic text."""
    made = points(view, records, kind)
    rows = [[value, *_varied(view, records, kind, runs, arm)] for value, runs, arm in made if arm != "random_pairs"]
    return table([label, *_heads(view, kind)], rows)


def _varied(view: View, records: Sequence[Record], kind: str, runs: Runs, arm: str) -> list[str]:
    """What is true of the text; losses, what they are beside, and random pairs where those were varied too."""
    told = [line["synthetic"] for line in runs.arms[arm].values()]
    row = [str(len(told))]
    for part, name in view.known:
        row.append(_number([line[part][name] for line in told], name != "pairs"))
    settings = {line["setting"] for name in (arm, "random_pairs") for line in runs.arms.get(name, {}).values()}
    for text in view.varied:
        beside = _beside(view, records, kind, runs, arm, text)
        told_beside = closed(beside) if kind == "documents" else shown(beside) if beside and beside.value else ""
        row += [f"{runs.losses(text, arm)[0].value:.3f}", told_beside]
        alike = len(settings) == 1 and "random_pairs" in runs.arms
        row.append(shown(runs.difference(text, arm, "random_pairs").estimate) if alike else "")
    return row


def _beside(view: View, records: Sequence[Record], kind: str, runs: Runs, arm: str, text: str) -> Estimate | None:
    """How much higher a loss is than that of SBP as it is, of the same seeds; in another world, the gap closed."""
    if kind == "documents":
        return runs.gap(text, arm)
    usual = view.runs(records, "main").arms["sbp"]
    both = Runs({"sbp": usual, "varied": runs.arms[arm]}, view.unit)
    return both.difference(text, "varied", "sbp").estimate


def _heads(view: View, kind: str) -> list[str]:
    beside = "gap closed" if kind == "documents" else "minus SBP as above"
    heads = ["seeds", *view.known.values()]
    return heads + [cell for text in view.varied for cell in (view.texts[text], beside, "minus random pairs")]


def points(view: View, records: Sequence[Record], kind: str) -> list[tuple[str, Runs, str]]:
    """The values of a sweep with the runs to compare, and each arm that has it; the value of "main" among them."""
    found: dict[str, tuple[Runs, list[str]]] = {}
    if kind == "share":
        runs = view.runs(records, "share", "main")
        found = {arm.partition("_")[2]: (runs, [arm]) for arm in runs.arms if arm.startswith("sbp_")}
    else:
        for name in {line["setting"] for line in records if line["setting"].startswith(f"{kind}/")}:
            own = {line["arm"] for line in records if line["setting"] == name}
            runs = view.runs(records, *((name,) if kind == "documents" else (name, "main")))
            found[name.partition("/")[2]] = (runs, [arm for arm in COMPARED if arm in own])
    if found and kind in MAIN:
        both = any(len(arms) > 1 for _, arms in found.values())
        found[MAIN[kind]] = (view.runs(records, "main"), list(COMPARED) if both else ["sbp"])
    return [(value, found[value][0], arm) for value in sorted(found, key=float) for arm in found[value][1]]


def variants(view: View, records: Sequence[Record]) -> str:
    """Other bases and filters, beside SBP as it is."""
    rows = []
    for setting, name in VARIANTS.items():
        runs = view.runs(records, setting, "main")
        own = [line for line in records if line["setting"] == setting and line["arm"].startswith("sbp")]
        if not own:
            continue
        arm = own[0]["arm"]
        rows.append([name, *_varied(view, records, "variants", runs, arm)])
    return table(["", *_heads(view, "variants")], rows)


VARIANTS = {
    "main": "as above",
    "embedder/plain": "MiniLM's vectors as they are, not whitened",
    "embedder/self": "the base model's own vectors, whitened",
    "base/early": "base: repetition that stops early",
    "base/last": "base: the end of repetition, which knows the capped documents by heart",
    "filters/none": "no filter against copies",
}
COMPARED = ("sbp", "random_pairs")
MAIN = {"share": "0.375", "documents": "3", "threshold": "0.24", "epochs": "2", "temperature": "1"}


def sweep_figure(view: View, records: Sequence[Record], kind: str, label: str) -> None:
    """Losses by value beside SBP as it is, or gaps closed; random pairs dashed; intervals from three seeds on."""
    made = points(view, records, kind)
    figure, panels = plt.subplots(1, len(view.texts), figsize=(3.1 * len(view.texts), 2.6), layout="constrained")
    for axes, text, color in zip(panels, view.texts, COLORS, strict=False):
        for name, style in (("sbp", "-o"), ("random_pairs", "--s")):
            x, y, low, high = [], [], [], []
            for value, runs, arm in made:
                own = (arm == "random_pairs") == (name == "random_pairs")
                found = _beside(view, records, kind, runs, arm, text) if own else None
                if found is not None:
                    x.append(float(value))
                    y.append(found.value)
                    told = found.low is not None and found.high is not None and len(runs.arms[arm]) > 2
                    low.append(found.value - found.low if told else 0.0)
                    high.append(found.high - found.value if told else 0.0)
            if x:
                shade = color if name == "sbp" else "#888888"
                axes.errorbar(x, y, (low, high), fmt=style, color=shade, capsize=3, markersize=4, label=NAMES[name])
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set(title=view.texts[text])
    unit = view.unit.replace("_", " ")
    panels[0].set_ylabel("gap closed" if kind == "documents" else f"{unit},\nminus SBP as above")
    figure.supxlabel(label, fontsize=10)
    panels[0].legend(frameon=False, fontsize=8)
    _save(figure, f"{view.name}-{kind}")


def curves_figure(records: Sequence[Record]) -> None:
    """Validation losses on the way in the world of concepts, means over seeds, of all tokens and of facts."""
    runs = Runs.of(records, "main")
    figure, both = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for axes, (key, title) in zip(both, (("validation", "all tokens"), ("validation/facts", "facts")), strict=True):
        for arm in (arm for arm in NAMES if arm in runs.arms):
            curves = [line["curve"] for line in runs.arms[arm].values()]
            steps = min(map(len, curves))
            tokens = [np.mean([curve[step]["tokens"] for curve in curves]) / 1e6 for step in range(steps)]
            losses = [np.mean([curve[step][key] for curve in curves]) for step in range(steps)]
            axes.plot(tokens, losses, label=NAMES[arm], linewidth=1.4)
        axes.set(xlabel="training tokens, millions", ylabel="validation, nats per token", title=title)
    both[0].legend(frameon=False, fontsize=7)
    _save(figure, "concepts-curves")


def _save(figure: plt.Figure, name: str) -> None:
    """As bytes that depend on nothing but what is drawn."""
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


SWEEPS = {
    "share": "share of synthetic tokens",
    "documents": "capped documents of a concept",
    "threshold": "threshold of pairs",
    "noise": "documents with the vector of any concept",
    "epochs": "passes over the pairs in tuning",
    "temperature": "temperature",
}
Part = Callable[[View, Sequence[Record]], str]
PARTS: dict[str, Part] = {
    "grid": grid,
    "arms": arms,
    "differences": differences,
    "truth": truth,
    "costs": costs,
    "quality": quality,
    "operations": operations,
    "variants": variants,
    **{kind: partial(sweep, kind=kind, label=label) for kind, label in SWEEPS.items()},
}


def filled(page: str) -> str:
    """The page with every table between its two marks made anew."""
    views = {view.name: (view, view.records) for view in (CONCEPTS, TEXT)}

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n{PARTS[found[3]](*views[found[2]])}\n{found[4]}"

    return re.sub(r"(<!-- (\w+): (\w+) -->)\n.*?(<!-- end -->)", part, page, flags=re.DOTALL)


def main() -> None:
    page = filled(PAGE.read_text())
    PAGE.write_text(page)
    curves_figure(CONCEPTS.records)
    for view in (CONCEPTS, TEXT):
        for kind, label in SWEEPS.items():
            if f"(study/{view.name}-{kind}.svg)" in page:
                sweep_figure(view, view.records, kind, label)


if __name__ == "__main__":
    main()
