"""Models to and from other people: a foreign base model, its config fields, and finished models as folders."""

import gzip
import json
import os
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from etils import epath

from sbp_jax import cli
from sbp_jax.config import MeshShape, Model, RopeScaling, Tokenizer
from sbp_jax.errors import SbpError
from sbp_jax.experiments import load
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import initialize
from sbp_jax.overrides import override
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.pipeline import Pipeline
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training import exchange

CONFIG = "configs/quickstart.py"
FOREIGN = Model(
    width=48, layers=2, heads=6, kv_heads=3, head_dim=8, ffn=64, qk_norm=False, rope_base=5e5, norm_epsilon=1e-5,
    rope_scaling=RopeScaling(factor=2.0, context=256),
)  # fmt: skip
ROWS, CONTEXT, END = 400, 512, "<|end_of_text|>"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """A Llama with a tokenizer of its own, as if somebody else had made both."""
    folder = tmp_path_factory.mktemp("foreign")
    with gzip.open("data/wikipedia_vital/documents.jsonl.gz", "rt") as stream:
        texts = [json.loads(line)["text"] for line in stream][::50]
    tokenizer = text_tokenizer.train(texts, Tokenizer(vocab_size=ROWS, end_of_document=END, separator="<|reserved|>"))
    assert tokenizer.vocab_size == ROWS
    weights = initialize(FOREIGN, ROWS, 3, build_mesh(MeshShape()))
    path = epath.Path(folder)
    huggingface.save(path, weights, FOREIGN, ROWS, CONTEXT, tokenizer.end_of_document, largest_file=50_000)
    tokenizer.save(path / huggingface.TOKENIZER)
    return folder


def fields_of(folder: Path) -> list[str]:
    """The options that `sbp import` prints, as a shell would take them apart."""
    return shlex.split(exchange.assignments(exchange.fields(str(folder))).replace("\\\n", " "))


def refused(capsys, *arguments: str) -> str:
    status = cli.main(list(arguments))
    err = capsys.readouterr().err
    assert status == 2 and err.startswith("error: "), err
    return err


def test_import_prints_what_an_experiment_needs(foreign, capsys):
    assert cli.main(["import", str(foreign)]) == 0
    out = capsys.readouterr().out
    assert f"--set 'tokenizer.end_of_document={END}'" in out and "--set model.rope_scaling.factor=2.0" in out
    assignments = [part for part in fields_of(foreign) if part != "--set"]
    experiment = load(CONFIG, assignments, tiny=True)
    assert experiment.model == FOREIGN
    assert experiment.tuning.base == str(foreign) and experiment.tokenizer.path == f"{foreign}/tokenizer.json"
    assert cli.main(["import", str(foreign), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["rope_scaling"]["context"] == 256


def test_a_group_that_is_off_is_on_once_a_field_of_it_is_set():
    experiment = override(load(CONFIG), "model.rope_scaling.factor=32")
    assert experiment.model.rope_scaling == RopeScaling(factor=32.0)
    assert override(experiment, "model.rope_scaling=none").model.rope_scaling is None
    with pytest.raises(SbpError, match="there is no field factr; did you mean factor"):
        override(load(CONFIG), "model.rope_scaling.factr=32")
    with pytest.raises(SbpError, match="is a group of fields; set one of them: factor, low_frequency"):
        override(load(CONFIG), "model.rope_scaling=32")


def test_import_says_what_a_folder_lacks(foreign, tmp_path, capsys):
    assert "has no config.json" in refused(capsys, "import", str(tmp_path))
    for file in foreign.iterdir():
        if file.name != "tokenizer.json":
            os.link(file, tmp_path / file.name)
    assert "tokenizer.json is missing; save" in refused(capsys, "import", str(tmp_path))


def test_a_base_model_that_does_not_fit_is_refused_before_anything_is_made(foreign, tmp_path, capsys):
    """Guards hours of training of arms before the tuning finds that its base is another model."""
    plain = ["status", CONFIG, "--tiny", "--workdir", str(tmp_path / "work"), *fields_of(foreign)]
    assert cli.main(plain) == 0
    other = tokenizers.Tokenizer.from_file(str(foreign / "tokenizer.json"))
    other.add_tokens(["another"])
    other.save(str(tmp_path / "tokenizer.json"))
    for field, message in (
        ("model.ffn=128", "these fields of `model`: ffn=64 (not 128)"),
        ("model.qk_norm=true", "qk_norm=False (not True)"),
        ("model.rope_scaling=none", "rope_scaling=RopeScaling(factor=2.0"),
        ("tuning.context=513", "reads 512 tokens"),
        (f"tokenizer.path={tmp_path / 'tokenizer.json'}", f"not the tokenizer of tuning.base; set it to {foreign}"),
        ("tokenizer.path=none", f"set tokenizer.path={foreign}/tokenizer.json"),
        ("tokenizer.end_of_document=<|endoftext|>", f"new to the model; set tokenizer.end_of_document={END}"),
        (f"tuning.base={tmp_path}", "has no config.json"),
    ):
        assert message in refused(capsys, *plain, "--set", field), field
    assert not (tmp_path / "work" / "artifacts").exists()


def test_the_base_models_content_is_in_the_recipe_of_the_synthesizer(foreign, tmp_path):
    """Guards a synthesizer that is taken for that of another base model, or made again because a folder moved."""

    def keys(folder: Path) -> dict[str, str]:
        assignments = [part for part in fields_of(folder) if part != "--set"]
        pipeline = Pipeline(load(CONFIG, assignments, tiny=True), str(tmp_path))
        assert "base" not in pipeline.nodes["synthesizer"].inputs
        return {name: recipe.key for name, recipe in pipeline.recipes.items() if name != "report"}  # it shows the paths

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in foreign.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert keys(copy) == keys(foreign)
    shard = sorted(copy.glob("model-*"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    before, after = keys(foreign), keys(copy)
    assert before["synthesizer"] != after["synthesizer"] and before["synthesized"] != after["synthesized"]
    assert before["train-repetition-0"] == after["train-repetition-0"]


def test_models_are_named_by_arm_or_instance():
    models = ["train-repetition-0", "train-repetition-1", "synthesizer", "train-sbp-large-0"]
    assert exchange.choose("repetition", models) == "train-repetition-0"
    assert exchange.choose("train-repetition-1", models) == "train-repetition-1"
    assert exchange.choose("sbp-large", models) == "train-sbp-large-0"
    assert exchange.choose("synthesizer", models) == "synthesizer"
    with pytest.raises(SbpError, match="there is no model sbp; there are train-repetition-0"):
        exchange.choose("sbp", models)


@pytest.mark.slow
def test_a_foreign_model_is_tuned_generates_and_leaves_again(foreign, tmp_path, capsys):
    """With steps of hardly any length the synthesizer is still its base, in the layout and with the tokens of that."""
    arguments = [CONFIG, "--tiny", "--workdir", str(tmp_path / "work"), *fields_of(foreign)]
    arguments += ["--set", "tuning.peak_lr=1e-9", "--set", "tuning.final_lr=1e-9"]
    assert "is not complete" in refused(capsys, "export", *arguments, "--model", "synthesizer", "--to", "nowhere")
    assert cli.main(["run", *arguments, "--until", "synthesized"]) == 0, capsys.readouterr().err
    (folder,) = (tmp_path / "work" / "artifacts" / "synthesized").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["stats"]["documents"] > 0
    assert not (tmp_path / "work" / "artifacts" / "train-repetition-0").exists(), "the tuning has its base already"

    to = tmp_path / "exported"
    export = ["export", *arguments, "--model", "synthesizer", "--to", str(to)]
    capsys.readouterr()
    assert cli.main(export) == 0
    written = capsys.readouterr().out.split()
    assert sorted(Path(path).name for path in written) == sorted(path.name for path in to.iterdir())
    assert "is not empty" in refused(capsys, *export)
    found = huggingface.inspect(epath.Path(to))
    assert found.model == FOREIGN and found.vocabulary == ROWS + 1, "the separator is new"
    mesh = build_mesh(MeshShape())
    tuned = huggingface.load(epath.Path(to), FOREIGN, ROWS + 1, mesh)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
        tuned,
        huggingface.load(epath.Path(foreign), FOREIGN, ROWS + 1, mesh),
    )
    assert fields_of(to)[1] == fields_of(foreign)[1]
    tokenizer = tokenizers.Tokenizer.from_file(str(to / "tokenizer.json"))
    assert tokenizer.token_to_id("<|separator|>") == ROWS and tokenizer.token_to_id(END) == found.end_of_document
