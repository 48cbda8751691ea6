"""The parts of the page: where curves cross, what is said first, what arms ask, and how large it can get."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbp_jax.report import answer, curves
from sbp_jax.report.curves import Crossings, crossings
from sbp_jax.report.environment import percent, signed
from tests import planted_page, planted_summary

LARGEST = 5_000_000  # bytes of a page


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return planted_page.render(tmp_path_factory.mktemp("page"))


def test_the_worst_page_is_small_enough(tmp_path: Path) -> None:
    """Guards the budget: long documents, of characters that take six bytes in the page, under nine arms."""
    tags = "<&" * 75
    long = [f"{tags}\u6f22{number} " * 1_000 for number in range(40)]
    written = [f"{tags}\u6f22{number} " * 20 for number in range(300)]
    _, content = planted_page.render(tmp_path, long, written)
    assert 1_000_000 < len(content.encode()) < LARGEST
    assert "</script>" not in content.partition('id="triples-data">')[2].partition("</script>")[0]


def test_every_section_and_number_is_there(planted: tuple[dict[str, Any], str]) -> None:
    """Guards against a part of the summary that no reader sees."""
    summary, content = planted
    for section in ("arms", "held-out", "curves", "sweep", "ledger", "pairs", "synthesizer", "synthetic", "triples"):
        assert f'id="{section}"' in content
    for entry in summary["comparisons"]:
        assert f"{signed(entry['low'])} to {signed(entry['high'])}" in content
    for row in summary["texts"]:
        assert all(f"{entry['nats_per_token']:.4f}" in content for entry in row["arms"].values())
    for task in summary["tasks"]:
        assert percent(task["chance"]) in content
        assert all(percent(entry["value"]) in content for entry in task["arms"].values())
    for row in summary["compute"]:
        assert f"{row['flops']['total']:.3g}" in content
    for row in (*summary["sweep"]["shares"], *summary["sweep"]["repetition"]):
        assert f"{row['validation']:.4f}" in content
    for entry in summary["quality"]:
        assert all(percent(row["repetition"]) in content for row in entry["rows"] if row["repetition"] is not None)
    assert "<i>once upon" not in content and "&lt;i&gt;once upon" in content


def test_the_answer_stands_before_everything_else(planted: tuple[dict[str, Any], str]) -> None:
    summary, content = planted
    gap = next(entry for entry in summary["gaps"] if entry["arm"] == "sbp" and entry["budget"] == "tokens")
    told = f"95% interval {percent(gap['low'], 0)} to {percent(gap['high'], 0)}"
    assert 0 < content.index("Asked:") < content.index(told) < content.index("<nav")
    assert percent(gap["closed"], 0) in answer.headline(summary)


def test_the_main_arm_is_no_control() -> None:
    """Guards the headline: a control, or another round, that stands first in the config is not what is asked about."""
    rows = [
        {"arm": name, "synthetic_share_asked": 0.5, "pairs": pairs, "base": base}
        for name, pairs, base in (("a", "random", None), ("b", "related", "a"), ("c", "related", None))
    ]
    gaps = [{"arm": row["arm"], "set": "test"} for row in rows]
    assert answer.main_arm({"arms": rows, "gaps": gaps}) == "c"
    assert answer.main_arm({"arms": rows, "gaps": gaps[:1]}) == "a"
    assert answer.main_arm({"arms": rows, "gaps": []}) is None


def test_every_arm_asks_its_own_question(planted: tuple[dict[str, Any], str]) -> None:
    questions = [answer.asked(row) for row in planted[0]["arms"]]
    assert len(questions) == len(set(questions)) == len(planted_summary.ARMS)


def test_curves_cross_where_straight_lines_do() -> None:
    x = np.array([0.0, 10.0, 20.0, 30.0])
    assert crossings(x, np.array([1.0, -1.0, -2.0, -1.0])) == Crossings((5.0,), 5.0)
    assert crossings(x, np.array([-1.0, 3.0, -1.0, -1.0])) == Crossings((2.5, 17.5), 17.5)
    assert crossings(x, np.array([-1.0, 3.0, 1.0, 1.0])) == Crossings((2.5,), None)
    assert crossings(x, np.array([-1.0, -3.0, -1.0, -1.0])) == Crossings((), 0.0)
    assert crossings(x, np.array([0.0, 0.0, 0.0, 0.0])) == Crossings((), None)
    assert crossings(x[:0], x[:0]) == Crossings((), None, False)


def test_crossings_are_told_in_words() -> None:
    met = {
        "a": Crossings((5e4,), 5e4),
        "b": Crossings((1e4, 2e4, 3e4), 3e4),
        "c": Crossings((), None),
        "d": Crossings((), None),
        "e": Crossings((2.0,), None),
        "f": Crossings((), 0.0),
        "g": Crossings((), None, False),
    }
    assert curves.sentences(met, "tokens") == [
        "The a arm: below repetition from 50k tokens on.",
        "The b arm: below repetition from 30k tokens on, after 3 crossings.",
        "The arms c and d: in the end no lower than repetition.",
        "The e arm: in the end no lower than repetition, though below it on the way.",
        "The f arm: below repetition at every validation.",
        "The g arm: trained only after as many tokens as repetition took in all.",
    ]


def test_crossings_are_ringed_in_the_charts(tmp_path: Path) -> None:
    """Guards the ring: an arm that is planted to cross has one in both charts, at the same place in words."""
    x = np.array([0.0, 10.0, 20.0])
    ours, base = (
        curves.Series("a", 1, x, np.array([3.0, 1.0, 1.0])),
        curves.Series("r", 0, x, np.array([2.0, 2.0, 2.0])),
    )
    found = crossings(x, ours.y - base.y)
    ringed = curves._ringed(ours, found, "tokens")
    assert ringed.marked == ((5.0, 2.0, "a stays below repetition from 5 tokens on"),)
    assert '<circle class="ring c1"' in curves._chart([ringed, base], "t", "tokens")


@pytest.mark.parametrize("number, words", [(-0.00001, "+0.0000"), (0.5, "+0.5000"), (-0.5, "−0.5000")])
def test_no_minus_stands_before_a_zero(number: float, words: str) -> None:
    assert signed(number) == words and percent(-0.0001) == "0.0%"
