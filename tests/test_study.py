"""The study: records are what the artifacts say and are not made again; planted pairs and lies are counted."""

import math
from dataclasses import replace

import jax
import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Recipe, parquet
from sbp_jax.artifacts.artifact import Output
from sbp_jax.derived import derive
from sbp_jax.errors import SbpError
from sbp_jax.experiments import load_module
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import bind
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.pipeline import Pipeline
from sbp_jax.study import conditional, grid, truth
from sbp_jax.study.tables import Runs, shown
from sbp_jax.study.world import Rules, World
from sbp_jax.text.tokenizer import load as load_tokenizer
from sbp_jax.training.export import BEST

SMALL = (
    "model.width=32",
    "model.head_dim=16",
    "model.ffn=64",
    "training.context=64",
    "tuning.context=128",
    "training.tokens=8192",
    "arms.repetition.epochs=3",
    "training.batch_rows=8",
    "training.evaluate_every=4",
    "tuning.epochs=1",
    "tuning.batch_rows=8",
    "tuning.validation=0.2",
    "tokenizer.vocab_size=512",
    "pairs.threshold=0.75",
    "pairs.minimum=10",
    "synthesis.oversample=2",
    "synthesis.max_new_tokens=48",
    "filters.unfinished=keep",
    "filters.min_words=1",
    "filters.max_repetition=1",
    "embedding.max_tokens=32",
    "embedding.whiten=false",
    "execution.slots=32",
)
WORLD = {"concepts": 16, "facts": 4, "values": 6, "told": 3, "restated": 1}
WORLD |= {"capped": 4, "oracle": 16, "validation": 1, "test": 2}


@pytest.fixture(scope="module")
def study():
    study = grid.read("configs/study_concepts.py")
    return replace(study, settings=(grid.Setting("small", SMALL, ("sbp",)),), world=WORLD)


@pytest.fixture(scope="module")
def recorded(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    grid.run(study, study.settings, [5], folder / "work", folder / "records.jsonl", lambda line: None)
    return folder


def test_records_are_what_the_artifacts_say(study, recorded):
    lines = grid.recorded(recorded / "records.jsonl")
    assert [(line["setting"], line["seed"], line["arm"]) for line in lines] == [("small", 5, "sbp")]
    experiment, world = grid.experiment(study, study.settings[0], 5, recorded / "work")
    assert experiment.seeds == (5,) and world.rules.seed == 5
    pipeline = Pipeline(experiment, str(recorded / "work"))
    for line in lines:
        for text, name in (("test", "score-"), ("facts", "score-facts-"), ("recall", "score-recall-")):
            table = parquet.read(pipeline.artifact(f"{name}{line['arm']}-5"))
            nats, targets = (np.array(table[column]) for column in ("nats", "targets"))
            assert math.isclose(line["losses"][text]["nats_per_token"], nats.sum() / targets.sum())
        trained = pipeline.artifact(f"train-{line['arm']}-5")
        assert (
            line["curve"][-1]["tokens"]
            == trained.stats["tokens"]
            == sum(stream["tokens"] for stream in line["streams"].values())
        )
        assert min(point["validation"] for point in line["curve"]) == line["best_validation"]
        kept = parquet.read(pipeline.artifact("synthetic"))
        assert line["synthetic"]["synthetic"]["documents"] == kept.num_rows


def test_what_a_config_says_of_a_corpus_with_splits_of_its_own(study, recorded, tmp_path):
    """Roughly, and saying so, while nothing is packed; then what the rows hold."""
    made, _ = grid.experiment(study, study.settings[0], 5, recorded / "work")
    before = derive(Pipeline(made, str(tmp_path)))
    assert before["tokens from"] == "corpus.tokens, as if splits were drawn, though split decides"
    told = derive(Pipeline(made, str(recorded / "work")))
    stream = grid.recorded(recorded / "records.jsonl")[0]["streams"]["real"]
    assert told["tokens from"] == "the packed rows"
    assert math.isclose(told["real epochs"]["sbp"], stream["epochs"], rel_tol=0.1)


def test_what_is_recorded_is_not_made_again(study, recorded, tmp_path):
    """Not even where the artifacts are gone; another seed is another experiment."""
    before = (recorded / "records.jsonl").read_bytes()
    with (recorded / "records.jsonl").open("ab") as stream:
        stream.write(b'{"setting": "smal')  # killed while it wrote
    assert len(grid.recorded(recorded / "records.jsonl")) == 1
    grid._append(recorded / "records.jsonl", "{}")
    assert (recorded / "records.jsonl").read_bytes() == before + b"{}\n"
    (recorded / "records.jsonl").write_bytes(before)
    grid.run(study, study.settings, [5], tmp_path / "elsewhere", recorded / "records.jsonl")
    assert (recorded / "records.jsonl").read_bytes() == before
    assert not (tmp_path / "elsewhere/artifacts").exists()
    keys = []
    for seed in (5, 6):
        experiment, _ = grid.experiment(study, study.settings[0], seed, recorded / "work")
        recipes = Pipeline(experiment, str(tmp_path)).recipes
        keys.append(
            {recipes[name].key for name in ("documents", "tokenizer", "pairs", "synthetic", "train-sbp-" + str(seed))}
        )
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("noise, precision", [("0", (1.0, 1.0)), ("0.5", (0.1, 0.6))])
def test_vectors_of_the_world_find_its_pairs(study, recorded, noise, precision):
    """All of them and no others, or as many as half of the documents allow that have any concept's vector."""
    sets = (*SMALL, f"embedding.vectors={{world}}/vectors-{noise}.parquet", "tuning.context=256")  # none too long
    made, world = grid.experiment(study, grid.Setting("exact", sets), 5, recorded / "work")
    pipeline = Pipeline(made, str(recorded / "work"))
    pipeline.run(lambda line: None, until="pairs")
    found = truth.pairs(*map(pipeline.artifact, ("documents", "splits", "pairs")))
    assert precision[0] <= found["precision"] <= precision[1]
    assert found["recall"] == 1 if noise == "0" else 0.1 < found["recall"] < 0.5


def test_costs_are_those_of_each_document_alone(study, recorded):
    """Not packed with others, not padded, and read by the decoder itself; a base, a synthesizer and both neighbours."""
    experiment, world = grid.experiment(study, study.settings[0], 5, recorded / "work")
    pipeline = Pipeline(experiment, str(recorded / "work"))
    documents, splits, tokenizer = map(pipeline.artifact, ("documents", "splits", "tokenizer"))
    base, synthesizer = pipeline.artifact("train-repetition-5"), pipeline.artifact("synthesizer")
    found = conditional.costs(experiment, world, documents, splits, tokenizer, base, synthesizer)
    assert found["entropy"] < found["newcomer"] < found["after_related"]  # nobody has learned anything in 15 steps

    rows = zip(parquet.read(documents).to_pylist(), parquet.read(splits).to_pylist(), strict=True)
    texts: dict[str, list[str]] = {}
    for row, split in rows:
        if split["split"] == "test":
            texts.setdefault(row["source"], []).append(row["text"])
    pairs = [texts[source] for source in sorted(texts)]  # two of each concept
    encode = load_tokenizer(tokenizer.file("tokenizer.json"), experiment.tokenizer)

    def nats(trained, before, target):
        folder = trained.folder(BEST)
        vocabulary = huggingface.inspect(folder).vocabulary
        parameters = huggingface.load(folder, experiment.model, vocabulary, build_mesh(experiment.execution.mesh))
        decoder = bind(experiment.model, vocabulary, parameters)
        ids = [encode.end_of_document]
        for text in before:
            ids += [*encode.encode_batch([text])[0], encode.separator]
        start = len(ids)
        ids += [*encode.encode_batch([target])[0], encode.end_of_document]
        tokens = np.array(ids)[None]
        logits = decoder(tokens[:, :-1], np.ones_like(tokens[:, 1:]), np.arange(len(ids) - 1)[None])
        told = np.asarray(jax.nn.log_softmax(logits))[0, np.arange(len(ids) - 1), ids[1:]]
        return -told[start - 1 :].sum()

    for name, trained, before in (
        ("alone", base, lambda place, one: []),
        ("after_related", synthesizer, lambda place, one: [pairs[place][1 - one]]),
        ("after_other", synthesizer, lambda place, one: [pairs[(place + 1) % len(pairs)][one]]),
    ):
        own = [nats(trained, before(place, one), pairs[place][one]) for place in range(len(pairs)) for one in range(2)]
        assert math.isclose(found[name], np.mean(own), rel_tol=1e-4), name


def test_planted_pairs_and_lies_are_counted(tmp_path):
    world = World(Rules(concepts=3, facts=3, values=4, told=2, seed=1))
    random = np.random.default_rng(0)
    capped = [world.document(concept, random) for concept in (0, 0, 1, 2)]
    sources = [world.names[told.concept] for told in capped]
    documents = _artifact(tmp_path / "d", ordinal=[0, 1, 2, 3], source=sources, text=[told.text for told in capped])
    splits = _artifact(tmp_path / "s", ordinal=[0, 1, 2, 3], split=["capped"] * 3 + ["unused"])
    accepted = ["accepted", "accepted", "copy"]
    found = _artifact(tmp_path / "p", d1=[0, 0, 1], d2=[1, 2, 0], verdict=accepted)
    assert truth.pairs(documents, splits, found) == {"pairs": 2, "precision": 0.5, "recall": 0.5}

    lie = capped[0].facts[0]
    wrong = next(value for value in world.values[lie.attribute] if value != lie.value)
    texts = [
        capped[0].text,  # a copy
        capped[0].text[: lie.start] + wrong + capped[0].text[lie.end :],  # half of it is false
        capped[2].text.replace("  ", " "),  # of another concept than its seed's
        "Nothing at all.",
    ]
    told = truth.synthetic(world, documents, splits, _artifact(tmp_path / "m", text=texts, seed=[0, 0, 0, None]))
    assert told["documents"] == 4 and told["copies"] == 0.5 and told["on_concept"] == 0.5
    assert told["facts"] == 6 / 4 and told["true"] == 5 / 6 and told["new"] == 0
    assert told["told"] == told["told_by_capped"] == 6 / world.wordings


def _artifact(path, **columns):
    output = Output(epath.Path(path), Recipe("planted", 1, {}, {}), "planted")
    output.shard(0, ".parquet", lambda writing: parquet.write(writing, pa.table(columns)))
    return output.finish()


def test_what_is_no_study_is_told(study):
    with pytest.raises(SbpError, match="quickstart.py has no SETTINGS"):
        grid.read("configs/quickstart.py")
    with pytest.raises(SbpError, match="has no setting mian; there are small"):
        study.chosen(["mian"])
    assert study.chosen(None) == study.chosen(["small"])


def test_gaps_are_from_the_better_repetition_of_each_text():
    """Planted: two baselines, of which each is better on one text; every seed tells the same, so no luck is left."""
    losses = {"repetition": (2.0, 1.5), "repetition_early": (1.8, 1.9), "sbp": (1.5, 1.0), "oracle": (1.2, 0.5)}
    records = [
        {"setting": "main", "arm": arm, "seed": seed, "losses": {"test": _nats(a + luck), "facts": _nats(b + luck)}}
        for arm, (a, b) in losses.items()
        for seed, luck in enumerate((0.0, 0.3, -0.1))
    ]
    runs = Runs.of(records, "nothing", "main")
    for text, expected in (("test", 0.5), ("facts", 0.5)):
        gap = runs.gap(text, "sbp")
        assert (
            math.isclose(gap.value, expected) and math.isclose(gap.low, expected) and math.isclose(gap.high, expected)
        )
    assert runs.base("test") == "repetition_early" and runs.base("facts") == "repetition"
    ours = runs.losses("test", "sbp")[0].estimate
    values = [1.5, 1.8, 1.4]  # Student's t with two degrees of freedom
    half = 4.303 * np.std(values, ddof=1) / math.sqrt(3)
    assert math.isclose(ours.value, np.mean(values)) and abs(ours.high - ours.value - half) < 0.1 * half
    one = Runs.of([line for line in records if line["seed"] == 1], "main").gap("facts", "sbp")
    assert math.isclose(one.value, 0.5) and one.low is None and shown(one, percent=True) == "50%"
    worse = [{**line, "losses": {"test": _nats(2.5)}} for line in records if line["arm"] == "oracle"]
    assert Runs.of([line for line in records if line["arm"] != "oracle"] + worse, "main").gap("test", "sbp") is None


def _nats(value):
    return {"nats_per_token": value}


def test_tables_of_real_text_tell_bits_per_byte_operations_and_what_text_is():
    """Planted: real text is in SBP's record; a measure that cannot be told is empty."""
    script = load_module("docs/study_tables.py")
    measured = dict.fromkeys(script.MEASURES, 0.25) | {"words": 80.0, "unrelated": None}
    rows = [{"group": "real", **measured}, {"group": "generated", **measured, "words": 60.0}]
    records = [
        {
            **{"setting": "flops" if arm.endswith("_flops") else "main", "arm": arm, "seed": 0},
            **{"tokens": 2_000_000, "flops": flops * 1e12},
            "losses": {text: {"nats_per_token": 9.0, "bits_per_byte": loss} for text in script.TEXT.texts},
            "synthetic": {"quality": rows},
        }
        for arm, loss, flops in (("repetition", 2.5, 3), ("sbp", 2.25, 9), ("repetition_flops", 2.375, 9))
    ]
    told = script.operations(script.TEXT, records).splitlines()[2:]
    assert told == [
        "| repetition | 1 | 2.00 | 3.0 | 2.500 | 2.500 |",
        "| SBP | 1 | 2.00 | 9.0 | 2.250 | 2.250 |",
        "| repetition, at the operations of SBP | 1 | 2.00 | 9.0 | 2.375 | 2.375 |",
    ]
    real, made = script.quality(script.TEXT, records).splitlines()[2:]
    assert real == "| real documents | 25% | 25% |  | 25% | 25% | 25% | 80 |"
    assert made == "| SBP | 25% | 25% |  | 25% | 25% | 25% | 60 |"


def test_the_tables_of_the_page_are_those_of_the_records():
    script = load_module("docs/study_tables.py")
    page = script.PAGE.read_text()
    assert script.filled(page) == page, "run docs/study_tables.py"
    marks = page.count("<!-- concepts:") + page.count("<!-- text:")
    assert marks == page.count("<!-- end -->") > 4
