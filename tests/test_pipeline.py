"""The graph of stages: what a changed field runs again, what is left alone, who may work in a folder."""

import json
import re
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from sbp_jax.config import Arm, Corpus, Experiment, Splits, Training
from sbp_jax.derived import derive
from sbp_jax.errors import SbpError
from sbp_jax.experiments import check, load
from sbp_jax.graph import graph
from sbp_jax.overrides import override
from sbp_jax.pipeline import Pipeline

CONFIGS = sorted(Path("configs").glob("*.py"))
REAL_ROWS = {"rows-capped", "rows-oracle", "rows-validation", "rows-test"}
ARMS = {"train-repetition-0", "train-sbp-0", "train-oracle-0"}
SCORES = {"score-repetition-0", "score-sbp-0", "score-oracle-0"}
SBP_ARM = {"train-sbp-0", "score-sbp-0", "report"}
SYNTHETIC = {"quality", "synthetic", "tokens-synthetic", "rows-synthetic"} | SBP_ARM
SYNTHESIZED = {"synthesized"} | SYNTHETIC
SYNTHESIZER = {"synthesizer"} | SYNTHESIZED
PAIRS = {"pairs", "groups", "rows-pairs-train", "rows-pairs-validation"} | SYNTHESIZER
NEIGHBORS = {"neighbors"} | PAIRS


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    corpus = tmp_path / "documents.jsonl"
    corpus.write_text('{"id": "a", "text": "some text"}\n')
    return Experiment(name="test", corpus=Corpus(paths=(str(corpus),)))


def keys(experiment: Experiment, workdir: Path) -> dict[str, str]:
    return {name: recipe.key for name, recipe in Pipeline(experiment, str(workdir)).recipes.items()}


@pytest.mark.parametrize(
    ("assignment", "again"),
    [
        ("filters.max_copied=0.1", SYNTHETIC),
        ("synthesis.temperature=0.7", SYNTHESIZED),
        ("tuning.peak_lr=1e-4", SYNTHESIZER),
        ("tuning.conditioning=2", PAIRS - {"pairs"}),
        ("pairs.threshold=0.6", PAIRS),
        ("neighbors.top_k=7", NEIGHBORS),
        ("embedding.max_tokens=64", {"embeddings"} | NEIGHBORS),
        ("arms.sbp.synthetic_share=0.5", SYNTHESIZED),
        ("training.peak_lr=1e-4", ARMS | SCORES | SYNTHESIZER),
        ("tokenizer.vocab_size=300", None),
        ("splits.seed=1", None),
        ("note=another", {"report"}),
        ("evaluation.stride=64", {"rows-test", "report"} | SCORES),
        ("evaluation.rows_while_training=8", {"report"}),
        ("execution.slots=8", set()),
        ("execution.mesh.tensor=2", set()),
        ("corpus.max_skipped=0.5", {"report"}),
    ],
)
def test_a_changed_field_makes_again_exactly_what_depends_on_it(experiment, tmp_path, assignment, again):
    before, after = keys(experiment, tmp_path), keys(override(experiment, assignment), tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    if again is None:
        kept = {"documents"}
        if assignment.startswith("tokenizer"):
            kept |= {"splits", "embeddings", "neighbors", "screened"}
        assert changed == set(before) - kept
    else:
        assert changed == again


def test_what_an_arm_or_an_embedder_needs_is_in_the_graph(experiment):
    """The control of random pairs runs through the stages of related ones; `self` embeds with the base model."""
    control = replace(experiment, arms=(*experiment.arms, Arm("control", synthetic_share=0.1, pairs="random")))
    nodes = graph(replace(control, embedding=replace(experiment.embedding, model="self")))
    assert nodes["embeddings"].inputs["base"] == "train-repetition-0"
    assert "base" not in graph(experiment)["embeddings"].inputs
    assert nodes["train-control-0"].inputs["synthetic"] == "rows-synthetic-random"
    assert nodes["train-sbp-0"].inputs["synthetic"] == "rows-synthetic"
    assert nodes["neighbors-random"].inputs == {"embeddings": "embeddings", "like": "pairs", "tokens": "tokens"}
    assert nodes["synthesizer-random"].inputs["pairs"] == "rows-pairs-train-random"
    assert not any(name.endswith(("-random", "-self")) for name in graph(experiment))
    assert list(nodes).index("neighbors-random") < list(nodes).index("synthesizer-random")


def test_the_control_of_self_samples_asks_the_base_model_and_reads_no_pairs(experiment):
    """A synthesizer, or its pairs, would be the treatment in the place of its control."""
    arm = Arm("self_samples", synthetic_share=0.1, pairs="none")
    nodes = graph(replace(experiment, arms=(*experiment.arms, arm), tuning=replace(experiment.tuning, conditioning=3)))
    written, conditional = nodes["synthesized-self"], nodes["synthesized"]
    unconditional = {role: name for role, name in conditional.inputs.items() if role != "pairs"}
    assert written.inputs == unconditional | {"model": "train-repetition-0"} != conditional.inputs
    assert (written.config["conditioning"], written.config["context"]) == (0, experiment.training.context)
    assert (conditional.config["conditioning"], conditional.config["context"]) == (3, experiment.tuning.context)
    assert nodes["train-self_samples-0"].inputs["synthetic"] == "rows-synthetic-self"
    assert {name for name in nodes if name.endswith("-self")} == {
        f"{name}-self" for name in ("synthesized", "synthetic", "tokens-synthetic", "rows-synthetic", "quality")
    }
    with pytest.raises(SbpError, match="arms.other.pairs is self; it may be related, random or none"):
        check(replace(experiment, arms=(*experiment.arms, Arm("other", pairs="self"))))


def test_a_text_set_is_scored_for_every_arm_and_makes_no_other_artifact_anew(experiment, tmp_path):
    """Guards finished arms: to look at another text must not cost their training again."""
    before = keys(experiment, tmp_path)
    more = override(experiment, f"evaluation.texts.mine.paths={experiment.corpus.paths[0]}")
    check(more)
    after, nodes = keys(more, tmp_path), graph(more)
    assert {name for name in before if before[name] != after[name]} == {"report"}
    made = {"texts-mine", "tokens-text-mine", "rows-text-mine", "copies-mine"}
    assert set(after) - set(before) == made | {f"score-mine-{arm.name}-0" for arm in experiment.arms}
    assert "rows-text-mine" in Pipeline(more, str(tmp_path))._select("train-repetition-0", None), "made before it"
    for arm in experiment.arms:
        assert nodes[f"train-{arm.name}-0"].watched == {"text/mine": "rows-text-mine"}
        assert nodes["report"].inputs[f"text/mine/{arm.name}/0"] == f"score-mine-{arm.name}-0"
    assert str(tmp_path) not in nodes["report"].config["source"], "the report says no paths of this machine"
    assert list(nodes).index("rows-text-mine") < list(nodes).index("train-repetition-0")
    with pytest.raises(SbpError, match="two stage instances would be named score-mine-sbp-0"):
        graph(replace(more, arms=(*more.arms, Arm("mine-sbp"))))


def test_the_content_of_the_corpus_is_in_every_recipe_and_its_place_is_not(experiment, tmp_path):
    before = keys(experiment, tmp_path)
    moved = tmp_path / "elsewhere" / "documents.jsonl"
    moved.parent.mkdir()
    moved.write_text(Path(experiment.corpus.paths[0]).read_text())
    elsewhere = replace(experiment, corpus=replace(experiment.corpus, paths=(str(moved),)))
    assert keys(elsewhere, tmp_path) == before
    moved.write_text('{"id": "a", "text": "some other text"}\n')
    assert not set(keys(elsewhere, tmp_path).values()) & set(before.values())


def test_a_damaged_record_of_another_experiment_stops_clean(experiment, tmp_path):
    """Its artifacts would count as unused and be removed."""
    other = Pipeline(replace(experiment, name="other", corpus=replace(experiment.corpus, sample=0.99)), str(tmp_path))
    other.run(lambda line: None, until="ingest")
    record = tmp_path / "experiments" / "other.json"
    record.write_text(record.read_text()[:50])
    with pytest.raises(SbpError, match="other.json is damaged"):
        Pipeline(experiment, str(tmp_path)).unused()


def test_values_of_the_wrong_type_in_a_config_are_named(experiment):
    """A string for a tuple of paths would be read as one path a letter, the first of them the root folder."""
    wrong = {
        "corpus.paths is '/data/x.jsonl'; it must be a tuple": {"corpus": Corpus(paths="/data/x.jsonl")},
        "training.peak_lr is '3e-3'; it must be a number": {"training": Training(peak_lr="3e-3")},
        "seeds is 0; it must be a tuple": {"seeds": 0},
        "arms.sbp.synthetic_share is None": {"arms": (Arm("sbp", synthetic_share=None),)},
        "splits.seed is True; it must be of type int": {"splits": Splits(seed=True)},
    }
    for message, change in wrong.items():
        with pytest.raises(SbpError, match=re.escape(message)):
            check(replace(experiment, **change))


def test_two_runs_in_one_work_folder_are_refused(experiment, tmp_path):
    pipeline = Pipeline(experiment, str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    with filelock.FileLock(tmp_path / "work" / ".lock"):
        with pytest.raises(SbpError, match="another run is working in"):
            pipeline.run(print)


def test_a_stage_alone_needs_its_inputs_and_an_unknown_one_is_named(experiment, tmp_path):
    pipeline = Pipeline(experiment, str(tmp_path))
    with pytest.raises(SbpError, match="splits needs documents, which is not complete"):
        pipeline.run(print, only="split")
    with pytest.raises(SbpError, match="there is no stage splitt; stages: embed, filter"):
        pipeline.run(print, until="splitt")


def test_until_makes_only_what_leads_there(experiment, tmp_path):
    pipeline = Pipeline(experiment, str(tmp_path))
    pipeline.run(lambda line: None, until="ingest")
    states = {status.name: status.state for status in pipeline.status()}
    assert states.pop("documents") == "done" and set(states.values()) == {"missing"}


def test_clean_lists_what_no_experiment_uses_and_keeps_the_rest(experiment, tmp_path):
    first = Pipeline(experiment, str(tmp_path))
    first.run(lambda line: None, until="ingest")
    other = Pipeline(replace(experiment, name="other", corpus=replace(experiment.corpus, sample=0.99)), str(tmp_path))
    other.run(lambda line: None, until="ingest")
    assert first.unused() == other.unused() == []
    changed = Pipeline(replace(experiment, corpus=replace(experiment.corpus, documents_per_shard=7)), str(tmp_path))
    changed.run(lambda line: None, until="ingest")
    assert changed.unused() == [first.path("documents")], "the name now stands for another recipe"
    assert first.unused() == [], "the last run's work is used, with other settings on this command line too"
    changed.remove(changed.unused())
    assert not first.path("documents").exists()
    assert other.artifact("documents") is not None and changed.artifact("documents") is not None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_and_its_tiny_variant_are_sound(path, tmp_path):
    for tiny in (False, True):
        experiment = load(str(path), tiny=tiny)
        derived = derive(Pipeline(experiment, str(tmp_path)))
        assert derived["steps"] > 0 and derived["parameters"] > 0
        json.dumps(derived)


@pytest.mark.parametrize(
    ("name", "synthetic", "epochs", "parameters"),
    [("200b_3b", 75e9, 12.5, 3e9), ("1t_3b", 125e9, 17.5, 3e9), ("1t_6b", 250e9, 15.0, 6e9)],
)
def test_the_papers_configs_give_the_papers_numbers(name, synthetic, epochs, parameters, tmp_path):
    """Table of the paper's three scales: synthetic tokens, passes over the real ones, size."""
    derived = derive(Pipeline(load(f"configs/paper_{name}.py"), str(tmp_path)))
    assert derived["synthetic tokens needed"] == synthetic
    assert derived["real epochs"]["sbp"] == epochs and derived["real epochs"]["repetition"] == 20
    assert abs(derived["parameters"] / parameters - 1) < 0.1


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("splits.capped=1.5", "splits.capped is 1.5; it is a fraction"),
        ("splits.oracle=0.1", "which it lies inside of"),
        ("synthesis.top_p=0", "synthesis.top_p is 0"),
        ("synthesis.temperature=-1", "synthesis.temperature is negative"),
        ("model.kv_heads=3", "must be a multiple of model.kv_heads"),
        ("model.dtype=float16", "it may be float32 or bfloat16"),
        ("arms.sbp.real=synthetic", "it may be capped or oracle"),
        ("training.batch_rows=0", "it must be above 0"),
        ("splits.near_duplicate=0", "every document is a copy"),
        ("splits.validation=0.99", "leaves nothing to train on"),
        ("arms.repetition.synthetic_share=0.3", "reads the capped set and nothing else"),
        ("arms.oracle.real=capped", "reads the oracle set and nothing else"),
        ("seeds=0,0", "the same number twice"),
        ("synthesis.oversample=nan", "synthesis.oversample is nan; it must be a number"),
        ("splits.capped=0", "splits.capped is 0; it must be above 0"),
        ("training.tokens=-5", "training.tokens is -5; it must be above 0"),
        ("name=../../elsewhere", "must be letters, digits"),
        ("arms.sbp.name=a/b", "must be letters, digits"),
        ("synthesis.seed=-1", "must lie between 0"),
        ("filters.near_sibling=0", "filters.near_sibling is 0; at 0 every document is a copy"),
        ("filters.max_words=10", "min_words .20. is above filters.max_words .10."),
        ("filters.index=minhash", "it may be exact, bloom or auto"),
        ("corpus.paths=", "corpus.paths is empty"),
        ("evaluation.texts.new.text={q}", "evaluation.texts.new.paths is empty; name the files"),
        ("evaluation.texts.test.paths=a.txt", "test is the name of the corpus's own test documents"),
        ("evaluation.texts.a/b.paths=a.txt", "must be letters, digits"),
        ("evaluation.stride=0", "it is from 1 to training.context .256., or none"),
        ("evaluation.stride=257", "it is from 1 to training.context .256., or none"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_anything_runs(assignment, message):
    with pytest.raises(SbpError, match=message):
        load("configs/quickstart.py", [assignment])
