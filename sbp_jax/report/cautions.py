"""What a reader of the results might otherwise miss, each in a sentence."""

from collections.abc import Iterator, Sequence
from typing import Any

from sbp_jax.config import BASE_ARM, ORACLE_ARM, Arm, Experiment

SHARE_TOLERANCE = 0.005  # of the training tokens; below it a missing share is rounding to rows
OVERFITTED = 0.02  # nats per token that the last validation loss may lie above the best one without a word
REPEATED = 1.01  # passes over the oracle's text past which it is no longer new
REAL, KEPT, RANDOM = "real", "accepted", "random"  # groups of `quality.json`
WORSE = ("repetition_rate", "duplicates", "pair_copying", "corpus_copying")  # shares of documents beside real ones
STRONGER = 0.002  # nats per token of validation loss by which a swept arm has to be better than repetition


def warnings(summary: dict[str, Any], experiment: Experiment) -> list[str]:
    """All of them; the losses of the arms first, then what is missing."""
    shown = [row for row in summary["arms"] if row["sweep"] is None]
    told = [sentence for row in shown for sentence in _of_arm(row, summary["uniform_nats_per_token"])]
    gain = summary["oracle_gain"]
    if gain["low"] is None or gain["low"] <= 0:
        told.append(
            f"the {ORACLE_ARM}'s gain over {BASE_ARM} is not surely above zero, so there is no gap to close;"
            " train longer, so that repetition wears out, or score more test documents."
        )
    tuned = summary["synthesizer"]
    if tuned["last_validation"] > tuned["best_validation"] + OVERFITTED:
        best = f"step {tuned['best_step']:,} of {tuned['steps']:,}"
        told.append(f"the synthesizer's pair loss was best at {best}; that checkpoint wrote the documents.")
    return [
        *told,
        *_of_repetition(summary),
        *_of_texts(summary),
        *_of_tasks(summary),
        *_of_contamination(summary, experiment),
        *_of_quality(summary),
        *_missing(summary, experiment.arms),
    ]


def _of_arm(row: dict[str, Any], uniform: float) -> Iterator[str]:
    asked, got = row["synthetic_share_asked"], row["synthetic_share"]
    if got < asked - SHARE_TOLERANCE:
        yield (
            f"the {row['arm']} arm asked for {asked:.1%} synthetic tokens and got {got:.1%}, real text filled"
            " the rest; raise synthesis.oversample or loosen the filters."
        )
    if row["overfitted"] > OVERFITTED:
        yield (
            f"the {row['arm']} arm ends {row['overfitted']:.3f} nats per token above its best validation loss, "
            "so the final models compared here are past their best."
        )
    if row["nats_per_token"] >= uniform:
        yield f"the {row['arm']} arm predicts no better than a guess at random; it has learned nothing."
    if row["real"] == "oracle" and row["real_epochs"] > REPEATED:
        yield (
            f"the {row['arm']} arm reads its text {row['real_epochs']:.2f} times, so that it repeats too and the gap"
            " is smaller than to an oracle of new text; raise splits.oracle or lower training.tokens."
        )


def _of_repetition(summary: dict[str, Any]) -> Iterator[str]:
    rows = {row["arm"]: row for row in summary["arms"]}
    ends = {arm: row["last_validation"] for arm, row in rows.items()}
    swept = [row["arm"] for row in summary["sweep"]["repetition"] if row["arm"] != BASE_ARM]
    best = min(swept, key=lambda arm: ends[arm], default=None)
    if best is not None and ends[best] < ends[BASE_ARM] - STRONGER:
        settings = f"weight_decay={rows[best]['weight_decay']:g}"
        if rows[best]["epochs"] is not None:
            settings += f", epochs={rows[best]['epochs']:g}"
        yield (
            f"{BASE_ARM} is not as strong as it could be: {best} ends at a validation loss of {ends[best]:.3f}, it at"
            f' {ends[BASE_ARM]:.3f}; set Arm("{BASE_ARM}", {settings}) before anything is compared with it.'
        )


def _of_texts(summary: dict[str, Any]) -> Iterator[str]:
    for told in summary["texts"]:
        copied = told.get("copied")  # absent where nobody looked
        if copied is not None and copied["copied_oracle"]:
            found = f"{copied['copied_oracle']:,} of {told['documents']:,} documents of the text set {told['set']}"
            yield (
                f"half or more of {found} stands in the training documents, {copied['copied_capped']:,} of them in the"
                " capped set; take them out of the set or of the corpus."
            )


def _of_tasks(summary: dict[str, Any]) -> Iterator[str]:
    guessed = []
    for task in summary["tasks"]:
        bounds = [arm["low"] for arm in task["arms"].values() if arm["low"] is not None]
        if task["chance"] and bounds and max(bounds) <= task["chance"]:
            guessed.append(f"{task['task']} ({task['metric']})")
    if guessed:
        yield f"no arm is surely better than chance at {', '.join(guessed)}; its differences there say nothing."


def _of_contamination(summary: dict[str, Any], experiment: Experiment) -> Iterator[str]:
    rows = [row for measured in summary["quality"] for row in measured["rows"]]
    looked = experiment.pairs.decontaminate or any(row.get("contaminated") is not None for row in rows)
    if summary["tasks"] and not looked:
        yield (
            "nobody looked whether documents hold items of the tasks; name the tasks' files in pairs.decontaminate, and"
            " the table of quality says how many real and synthetic ones do."
        )
    found = {}
    for measured in summary["quality"]:
        for row in measured["rows"]:
            if row["group"] in (REAL, KEPT) and row.get("contaminated"):
                kind = "real" if row["group"] == REAL else f"accepted {_name(measured)}"
                found[kind] = f"{row['contaminated']:.1%} of {row['documents']:,} {kind} documents"
    if found:
        yield f"arms have read items of evaluation sets: {', '.join(found.values())} hold one."


def _of_quality(summary: dict[str, Any]) -> Iterator[str]:
    """Where accepted documents are collapsed, or surely worse than real ones by a measure that makes them worthless."""
    for measured in summary["quality"]:
        name = _name(measured)
        if flags := [flag["told"] for flag in measured["collapsed"] if flag["group"] == KEPT]:
            yield f"the accepted {name} documents come from a template: {'; '.join(flags)}."
        rows = {row["group"]: row for row in measured["rows"]}
        real, kept = rows.get(REAL, {}), rows.get(KEPT, {})
        told = []
        for measure in WORSE:
            low, high = kept.get(f"{measure}_low"), real.get(f"{measure}_high")
            if low is not None and high is not None and low > high:
                label = measured["measures"][measure]["label"]
                told.append(f"{label} {kept[measure]:.1%} (real {real[measure]:.1%})")
        if told:
            yield f"accepted {name} documents are surely worse than real ones: {', '.join(told)}."
        chance = rows.get(RANDOM, {}).get("unrelated")
        if measured["pairs"] == "related" and chance is not None and kept.get("unrelated") is not None:
            if kept["unrelated_high"] >= chance:
                yield (
                    f"accepted {name} documents are not surely nearer to their seeds than random ones: pair irrelevance"
                    f" {kept['unrelated']:.1%}, of random pairs {chance:.1%}."
                )


def _name(measured: dict[str, Any]) -> str:
    """The set of documents by its stage instance, such as "synthetic-random"."""
    return f"synthetic{measured['suffix']}"


def _missing(summary: dict[str, Any], arms: Sequence[Arm]) -> Iterator[str]:
    if len(summary["seeds"]) == 1:
        yield "each arm has one seed, so that the luck of training is in no interval; give seeds three numbers or more."
    written = [arm for arm in arms if arm.synthetic_share]
    if not any(arm.pairs == "related" for arm in written):
        return
    controls = {"random": "random_pairs", "none": "self_samples"}
    missing = [name for pairs, name in controls.items() if not any(arm.pairs == pairs for arm in written)]
    if missing:
        yield (
            f"without the {' and '.join(missing)} arm{'s' if len(missing) > 1 else ''} it is not known whether related"
            " pairs are what helps; add the standard arms of these names."
        )
