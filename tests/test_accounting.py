"""The ledger: which stages an arm pays for, and what each of them is said to have computed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sbp_jax.accounting import formulas
from sbp_jax.accounting.charges import CHARGED, KINDS, Entry, allowance, charges, entries, operations, roles
from sbp_jax.config import Arm, Embedding, Experiment, Model
from sbp_jax.graph import graph
from sbp_jax.planning.bandwidth import prompt_flops, token_flops
from sbp_jax.training.flops import flops_per_token

MODEL, VOCABULARY = Model(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=64), 400
ARMS = (
    Arm("repetition"),
    Arm("sbp", synthetic_share=0.4),
    Arm("little", synthetic_share=0.1),
    Arm("random_pairs", synthetic_share=0.4, pairs="random"),
    Arm("self_samples", synthetic_share=0.4, pairs="none"),
    Arm("oracle", real="oracle"),
)
NODES = graph(Experiment("planted", arms=ARMS, seeds=(3, 4)))


def artifact(stage: str, stats: dict[str, Any], config: dict[str, Any] | None = None, rows: int = 0) -> Any:
    return SimpleNamespace(recipe={"stage": stage, "config": config or {}}, stats=stats, rows=rows)


def kinds(arm: str, seed: int = 4, nodes: Any = NODES) -> dict[str, str]:
    return {entry.instance: entry.kind for entry in entries(nodes, f"train-{arm}-{seed}")}


def test_an_arm_pays_for_what_its_run_descends_from_and_for_nothing_else() -> None:
    """Guards a free synthesizer: text costs its base model, vectors, search, tuning and writing."""
    base = {"train-repetition-3": "base"}  # of the first seed, whatever the run's own
    pairs = {"embeddings": "embedding", "neighbors": "search"}
    assert kinds("repetition") == {"train-repetition-4": "training"}
    assert kinds("repetition", 3) == {"train-repetition-3": "training"}
    assert kinds("oracle") == {"train-oracle-4": "training"}
    sbp = base | pairs | {"synthesizer": "tuning", "synthesized": "generation"}
    assert kinds("sbp") == sbp | {"train-sbp-4": "training"}
    own = {"neighbors-random": "search", "synthesizer-random": "tuning", "synthesized-random": "generation"}
    assert kinds("random_pairs") == base | pairs | own | {"train-random_pairs-4": "training"}
    assert kinds("self_samples") == base | {"synthesized-self": "generation", "train-self_samples-4": "training"}


def test_a_base_that_embeds_is_paid_for_once() -> None:
    nodes = graph(Experiment("planted", arms=ARMS, seeds=(3, 4), embedding=Embedding(model="self")))
    assert [entry.instance for entry in entries(nodes, "train-sbp-4")].count("train-repetition-3") == 1


def test_text_written_for_a_greater_share_is_not_charged_to_a_smaller_one() -> None:
    """Guards a budget at equal operations that grows because the experiment has one more arm."""
    parts = {
        arm: {entry.instance: entry.part for entry in entries(NODES, f"train-{arm}-3")} for arm in ("sbp", "little")
    }
    assert parts["sbp"]["synthesized"] == 1 and parts["little"]["synthesized"] == pytest.approx(0.25)
    assert parts["little"]["synthesizer"] == 1


def test_another_round_pays_for_the_round_before_it() -> None:
    nodes: dict[str, Any] = dict(NODES)
    second = replace(NODES["synthesizer"], name="synthesizer-2", inputs={"base": "train-sbp-3", "pairs": "pairs"})
    nodes["synthesizer-2"] = second
    nodes["synthesized-2"] = replace(NODES["synthesized"], inputs={"model": "synthesizer-2"})
    inputs = {"synthetic": "synthesized-2", f"{CHARGED}train-oracle-3": "train-oracle-3"}
    nodes["train-round-3"] = replace(NODES["train-sbp-3"], name="train-round-3", inputs=inputs)
    found = kinds("round", 3, nodes)
    assert found["train-sbp-3"] == found["train-repetition-3"] == "base"
    assert {"synthesized", "synthesized-2", "synthesizer", "synthesizer-2"} <= set(found)
    assert "train-oracle-3" not in found, "what is read for its cost alone is no ancestor"


def test_operations_are_those_of_the_positions_computed() -> None:
    optimization = {"batch_rows": 4, "context": 64}
    each = flops_per_token(MODEL, VOCABULARY, 64)
    trained = artifact("train", {"steps": 10, "tokens": 10 * 4 * 64}, {"training": optimization})
    assert operations(trained, MODEL, VOCABULARY) == (10 * 4 * 64 * each, None)
    # Tuning has fewer tokens with loss than positions; all positions are computed.
    tuned = artifact("tune", {"steps": 10, "tokens": 7}, {"tuning": optimization})
    assert operations(tuned, MODEL, VOCABULARY) == (10 * 4 * 64 * each, None)


def test_generation_counts_every_position_once_at_its_own_length() -> None:
    """Against the sum, position by position, of what a forward pass of one token costs behind those held."""
    prompt, new = 7, 5
    attention = 4 * MODEL.layers * MODEL.heads * MODEL.head_dim
    read = prompt * prompt_flops(MODEL, prompt)
    written = sum(token_flops(MODEL, VOCABULARY, prompt + place + 0.5) for place in range(new))
    stats = {"prompt_tokens": prompt, "new_tokens": new, "squared_tokens": (prompt + new) ** 2}
    made, note = operations(artifact("synthesize", stats), MODEL, VOCABULARY)
    assert note is None and made == pytest.approx(read + written)
    assert made - formulas.generation(MODEL, VOCABULARY, prompt, new, 0) == attention * (prompt + new) ** 2 / 2
    without, note = operations(artifact("synthesize", {"new_tokens": new}), MODEL, VOCABULARY)
    assert without < made and note is not None


def test_embedding_and_search_are_charged_by_what_their_manifests_tell() -> None:
    stats = {"width": 8, "tokens": 30, "squared_tokens": 500, "token_flops": 2.0, "square_flops": 3.0}
    vectors = artifact("embed", stats)
    assert operations(vectors, MODEL, VOCABULARY) == (30 * 2 + 500 * 3, None)
    given = artifact("embed", {"width": 8, "token_flops": 0.0, "square_flops": 0.0})
    assert operations(given, MODEL, VOCABULARY)[0] == 0 and "given" in str(operations(given, MODEL, VOCABULARY)[1])
    exact = artifact("neighbors", {"backend": "exact", "queries": 100, "settings": {"top_k": 5}}, rows=500)
    assert operations(exact, MODEL, VOCABULARY, vectors)[0] == 2 * 100 * 100 * 8 + 2 * 100 * (5 + 1 + 8) * 8
    drawn = artifact("neighbors", {"backend": "random"}, rows=500)
    assert operations(drawn, MODEL, VOCABULARY, vectors)[0] == 2 * 8 * 500


def test_the_ledger_adds_up_and_says_what_it_leaves_out() -> None:
    own = (Entry("synthesizer", "tuning"), Entry("synthesized", "generation", 0.5), Entry("train-sbp-0", "training"))
    optimization = {"batch_rows": 4, "context": 64}
    stats = {"prompt_tokens": 50, "new_tokens": 60, "squared_tokens": 700}
    made = {
        "synthesizer": artifact("tune", {"steps": 2}, {"tuning": optimization}),
        "synthesized": artifact("synthesize", stats),
        "train-sbp-0": artifact("train", {"steps": 10}, {"training": optimization}),
    }
    assert set(roles(own).values()) == set(made)
    told = charges(own, {CHARGED + name: value for name, value in made.items()}, MODEL, VOCABULARY)
    each = flops_per_token(MODEL, VOCABULARY, 64)
    assert (told.training, told.tuning) == (10 * 256 * each, 2 * 256 * each)
    assert told.generation == formulas.generation(MODEL, VOCABULARY, 50, 60, 700) / 2
    assert told.total == sum(getattr(told, kind) for kind in KINDS)
    assert len(told.notes) == 1 and "was given" in told.notes[0]
    assert allowance(told.total, MODEL, VOCABULARY, 64) == int(told.total / each) > 12 * 256
