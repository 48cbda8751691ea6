"""Overrides are typed, and a wrong one says what was meant."""

import pytest

from sbp_jax.config import Arm, Experiment, TextSet
from sbp_jax.errors import SbpError
from sbp_jax.overrides import override

EXPERIMENT = Experiment(name="test")


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("training.peak_lr=3e-3", lambda e: e.training.peak_lr, 3e-3),
        ("training.tokens=2e11", lambda e: e.training.tokens, 200_000_000_000),
        ("training.tokens=none", lambda e: e.training.tokens, None),
        ("training.batch_rows=2_048", lambda e: e.training.batch_rows, 2048),
        ("model.tied_embeddings=false", lambda e: e.model.tied_embeddings, False),
        ("corpus.paths=a.jsonl,b.jsonl", lambda e: e.corpus.paths, ("a.jsonl", "b.jsonl")),
        ("corpus.id_field=None", lambda e: e.corpus.id_field, None),
        ("seeds=0,1,2", lambda e: e.seeds, (0, 1, 2)),
        ("arms.sbp.synthetic_share=0.5", lambda e: e.arms[1], Arm("sbp", synthetic_share=0.5)),
        ("execution.mesh.tensor=2", lambda e: e.execution.mesh.tensor, 2),
        ("evaluation.texts.new.paths=a,b", lambda e: e.evaluation.texts, (TextSet("new", ("a", "b")),)),
    ],
)
def test_a_value_gets_the_type_of_its_field(assignment, read, value):
    result = read(override(EXPERIMENT, assignment))
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.peek_lr=1", "did you mean peak_lr"),
        ("trainning.peak_lr=1", "did you mean training"),
        ("arms.spb.synthetic_share=1", "did you mean sbp"),
        ("training.batch_rows=many", "expected a whole number"),
        ("training.batch_rows=1.5", "expected a whole number"),
        ("training.peak_lr=high", "expected a number"),
        ("model.tied_embeddings=perhaps", "expected true or false"),
        ("training=1", "group of fields"),
        ("training.peak_lr.deep=1", "has no field deep"),
        ("training.peak_lr", "expected FIELD=VALUE"),
        ("evaluation.texts=a.jsonl", "such as evaluation.texts.NAME.FIELD="),
        ("evaluation.texts.new=a.jsonl", "group of fields; set one of them: name, paths, text"),
        ("evaluation.texts.new.path=a.jsonl", "did you mean paths"),
        ("arms.new.synthetic_share=1", "there is no field new"),
    ],
)
def test_a_wrong_override_says_what_was_meant(assignment, message):
    with pytest.raises(SbpError, match=message):
        override(EXPERIMENT, assignment)


def test_fields_of_a_new_text_set_go_to_the_same_set():
    """Guards a second set of the same name, and one that replaces those of the config file."""
    result = EXPERIMENT
    for assignment in ("one.paths=a", "two.paths=b", "one.text={q} {a}"):
        result = override(result, f"evaluation.texts.{assignment}")
    assert result.evaluation.texts == (TextSet("one", ("a",), "{q} {a}"), TextSet("two", ("b",)))
