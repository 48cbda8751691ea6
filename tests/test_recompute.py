"""Everything that a report can say of losses and operations, again from raw files: seeds, texts, budgets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import planted_topics, recompute

ARMS = """
            Arm("control", synthetic_share=0.05, pairs="random"),
            Arm("little", synthetic_share=0.025),
            Arm("repetition_flops", flops_of="sbp"),
            Arm("oracle_flops", real="oracle", flops_of="sbp"),
        ),
        seeds=(0, 1),
        evaluation=Evaluation(texts=(TextSet("other", ("{texts}",)),)),
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight arms with two seeds each, scored on a text set too."""
    folder = tmp_path_factory.mktemp("numbers")
    config = planted_topics.plant(folder)
    texts = folder / "texts.jsonl"
    lines = (folder / "documents.jsonl").read_text().splitlines()
    texts.write_text("".join(json.dumps({"text": json.loads(line)["text"][::-1]}) + "\n" for line in lines[:60]))
    content = config.read_text()
    splits = "splits=Splits(validation=0.05, test=0.2, capped=0.5)"
    content = content.replace("splits=Splits(validation=0.05, test=0.05, capped=1.0)", splits)
    end = '            Arm("oracle", real="oracle"),\n        ),\n'
    assert content.count(end) == 1 and splits in content
    content = content.replace(end, end.removesuffix("        ),\n") + ARMS.format(texts=texts).lstrip("\n"))
    config.write_text(content)
    command = [sys.executable, "-m", "sbp_jax", "run", str(config), "--workdir", str(folder / "work")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "work"


@pytest.mark.slow
def test_numbers_over_seeds_texts_and_operations_follow_from_the_raw_files(workdir: Path) -> None:
    raw = recompute.Raw(workdir, "planted")
    assert recompute.problems(raw) == []
    told = raw.summary
    assert {entry["over"] for entry in told["comparisons"]} == {"documents and seeds"}
    assert {(gap["arm"], gap["budget"]) for gap in told["gaps"] if gap["against"] == "repetition_flops"} == {
        ("sbp", "flops")
    }
    assert [entry["set"] for entry in told["texts"]] == ["other"]
    flops = {entry["arm"]: entry["flops"] for entry in told["compute"]}
    assert flops["little"]["generation"] == pytest.approx(flops["sbp"]["generation"] / 2)
    assert flops["control"]["search"] > flops["sbp"]["search"] > 0
    assert flops["self"]["tuning"] == flops["self"]["search"] == 0 < flops["self"]["generation"]


@pytest.mark.slow
def test_the_terminal_shows_every_difference_with_its_interval_and_the_ledger(workdir: Path) -> None:
    raw, shown = recompute.Raw(workdir, "planted"), (workdir.parent / "stdout.txt").read_text()
    flat = " ".join(shown.split())
    for entry in raw.summary["comparisons"]:
        value = f"{entry['difference']:+.4f} {entry['low']:+.4f} to {entry['high']:+.4f} {entry['over']}"
        assert f"{entry['arm']} {entry['against']} {entry['set']} {value}" in flat
    for entry in raw.summary["compute"]:
        assert f"{entry['flops']['total']:.2e}" in flat
    assert "at equal operations" in flat.lower() and "at equal training tokens" in flat.lower()
