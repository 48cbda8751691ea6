"""All standard arms, one that trains for another's operations, and a sweep, from documents to the report."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sbp_jax.accounting import charges
from sbp_jax.arms import trained_arms
from sbp_jax.cli import main
from sbp_jax.config import Arm, Experiment, Sweep
from sbp_jax.data.mixing import Plan, mix
from sbp_jax.data.rows import SYNTHETIC, RowSource
from sbp_jax.experiments import check, load
from sbp_jax.pipeline import Pipeline
from sbp_jax.report.results import ledger, real_epochs, synthetic_tokens
from sbp_jax.training.flops import flops_per_token

pytestmark = pytest.mark.slow

SHARE = 0.25


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    experiment = load("configs/controls.py", tiny=True)
    arms = (*experiment.arms, Arm("flops", flops_of="sbp"), Arm("short", synthetic_share=0.5, epochs=0.1))
    experiment = replace(experiment, arms=arms, sweep=Sweep(weight_decays=(1.6,), epochs=(0.2,)))
    check(experiment)
    pipeline = Pipeline(experiment, str(tmp_path_factory.mktemp("controls")))
    pipeline.run(lambda line: None)
    return pipeline


def seen(made: Pipeline, arm: str) -> dict:
    return ledger(made.artifact(f"train-{arm}-0"))


def total(entries: dict) -> int:
    return sum(entry["tokens"] for entry in entries.values())


def test_arms_without_a_budget_of_their_own_see_equal_tokens_and_their_share(made: Pipeline) -> None:
    experiment: Experiment = made.experiment
    row = experiment.training.context
    for arm in experiment.arms[:9]:
        entries = seen(made, arm.name)
        assert total(entries) == experiment.training.tokens
        assert abs(synthetic_tokens(entries) - arm.synthetic_share * total(entries)) <= row
        assert (synthetic_tokens(entries) > 0) == (arm.synthetic_share > 0)
    assert abs(real_epochs(seen(made, "megadoc")) - real_epochs(seen(made, "sbp"))) < 0.01


def test_the_ledger_of_megadocs_is_what_the_batches_hold(made: Pipeline) -> None:
    """Guards the share: the synthetic targets of every batch, counted again."""
    pipeline, entries = made, seen(made, "megadoc")
    training, inputs = pipeline.experiment.training, pipeline.nodes["train-megadoc-0"].inputs
    rows = {name: entry["rows"] for name, entry in entries.items()}
    real, megadocs = pipeline.artifact(inputs["real"]), pipeline.artifact(inputs["megadoc"])
    streams = {"real": RowSource(real, real.stats["full_rows"]), "megadoc": RowSource(megadocs, rows["megadoc"])}
    plan = Plan(rows, {name: len(source) for name, source in streams.items()})
    documents = [batch["documents"] for batch in mix(streams, plan, training.batch_rows, 0)]
    counted = int(np.sum(np.concatenate(documents) >= SYNTHETIC))
    assert counted == entries["megadoc"]["synthetic_tokens"] == synthetic_tokens(entries) > 0


def test_an_arm_trains_for_the_operations_that_another_is_charged_for(made: Pipeline) -> None:
    """Equal FLOPs: all that the synthetic text of the sbp arm took, turned into training, to the step."""
    experiment = made.experiment
    charged = charges.entries(made.nodes, "train-sbp-0")
    artifacts = {role: made.artifact(name) for role, name in charges.roles(charged).items()}
    spent = charges.charges(charged, artifacts, experiment.model, experiment.tokenizer.vocab_size)
    token = flops_per_token(experiment.model, experiment.tokenizer.vocab_size, experiment.training.context)
    step = experiment.training.batch_rows * experiment.training.context
    assert min(spent.tuning, spent.generation, spent.embedding, spent.base, spent.training) > 0
    assert total(seen(made, "flops")) == spent.total / token // step * step > experiment.training.tokens


def test_passes_over_the_real_stream_are_a_budget_with_the_synthetic_text_on_top(made: Pipeline) -> None:
    targets = made.artifact("rows-capped").stats["targets"]
    step = made.experiment.training.batch_rows * made.experiment.training.context
    for name, epochs, share in (("short", 0.1, 0.5), ("repetition-wd1.6-e0.2", 0.2, 0.0)):
        tokens = total(seen(made, name))
        assert 0 <= epochs * targets / (1 - share) - tokens < step
        assert synthetic_tokens(seen(made, name)) == pytest.approx(share * tokens, abs=step)


def test_the_report_has_every_arm(made: Pipeline) -> None:
    summary = json.loads(made.artifact("report").file("summary.json").read_text())
    told = {arm["arm"]: arm for arm in summary["arms"]}
    assert {arm.name for arm in made.experiment.arms} <= set(told)
    assert told["megadoc"]["synthetic_share"] == pytest.approx(SHARE, abs=0.01)
    assert {entry.arm.name for entry in trained_arms(made.experiment)} >= {"repetition-wd1.6", "repetition-wd1.6-e0.2"}


def test_the_sweep_command_finds_what_is_there_and_says_what_validation_chooses(
    made: Pipeline, capsys: pytest.CaptureFixture
) -> None:
    command = ["sweep", "configs/controls.py", "--tiny", "--workdir", str(made.workdir)]
    assert main([*command, "--weight-decays", "0.1,1.6", "--epochs", "0.2"]) == 0
    out, err = capsys.readouterr()
    again = [line.split(" ...")[0] for line in err.splitlines() if line.endswith(" ...")]
    assert again == ["train-repetition-wd0.1-e0.2-0", "score-repetition-wd0.1-e0.2-0"]
    assert "repetition-wd1.6-e0.2" in out and "least validation loss at its end" in out
    assert main([*command, "--weight-decays", "0.1,1.6", "--epochs", "0.2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in told["repetition"]] == [
        "repetition",
        "repetition-wd0.1-e0.2",
        "repetition-wd1.6",
        "repetition-wd1.6-e0.2",
    ]
    least = min(told["repetition"], key=lambda row: row["validation"])
    assert told["chosen"] == least["arm"] and told["shares"] == []
    assert main([*command, "--shares", "1.5"]) == 2
