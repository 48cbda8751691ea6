"""The world of concepts: what a document states is read back, and what it costs to tell is what the grammar says."""

import json
import math
from collections import Counter

import numpy as np

from sbp_jax.study import concepts
from sbp_jax.study.world import FRAMES, GENRES, OPENINGS, Fact, Rules, World

RULES = Rules(concepts=30, facts=5, values=8, told=3, restated=1, seed=3)


def test_what_a_document_states_is_read_back():
    world, random = World(RULES), np.random.default_rng(0)
    for number in range(300):
        told = world.document(number % RULES.concepts, random)
        assert tuple(world.stated(told.text)) == told.facts
        assert len({fact.attribute for fact in told.facts}) == RULES.told == len(told.facts) - RULES.restated
        for fact in told.facts:
            assert told.text[fact.start : fact.end] == fact.value and world.is_true(fact)


def test_planted_lies_and_unknown_names_are_seen():
    world = World(RULES)
    told = world.document(0, np.random.default_rng(1))
    fact = told.facts[0]
    wrong = next(value for value in world.values[fact.attribute] if value != fact.value)
    lie = told.text[: fact.start] + str(wrong) + told.text[fact.end :]
    assert [world.is_true(found) for found in world.stated(lie)] == [False] + [True] * (len(told.facts) - 1)
    assert world.stated(told.text.replace(world.names[0], "Nowhere")) == []
    stranger = f"Visitors of {world.names[0]} find much to see. Everybody knows the river {wrong} of Nowhere."
    assert world.stated(stranger) == []
    assert len(world.stated(stranger.replace("Nowhere", world.names[1]))) == 1
    other = told.text.replace(world.names[0], world.names[1])
    assert {found.concept for found in world.stated(other)} == {1}


def test_nats_are_those_of_the_choices_that_are_made():
    """By counting: of many documents of one concept, a text occurs as often as its nats say."""
    world, random = (
        World(Rules(concepts=2, facts=2, values=3, told=1, restated=1, own_genre=0.5)),
        np.random.default_rng(2),
    )
    draws = [world.document(0, random) for _ in range(200_000)]
    counts, nats = Counter(told.text for told in draws), {told.text: told.nats for told in draws}
    texts = len(GENRES) * len(OPENINGS[GENRES[0]]) * 2 * 6 * 5
    assert len(counts) == texts
    assert abs(sum(math.exp(-value) for value in nats.values()) - 1) < 1e-9
    assert abs(sum(value * math.exp(-value) for value in nats.values()) - world.entropy) < 1e-9
    for text, count in counts.items():
        expected = len(draws) * math.exp(-nats[text])
        assert abs(count - expected) < 5 * math.sqrt(expected)


def test_recalled_facts_were_told_and_never_in_these_words(tmp_path):
    concepts.write(tmp_path, RULES, concepts.Counts(capped=3, oracle=5, validation=1, test=2))
    world = concepts.load(tmp_path)
    told: dict[int, set] = {}
    for line in (tmp_path / concepts.DOCUMENTS).read_text().splitlines():
        record = json.loads(line)
        if record["split"] == "capped":
            facts = world.stated(record["text"])
            told.setdefault(facts[0].concept, set()).update((f.attribute, f.genre, f.wording) for f in facts)
    records = [json.loads(line) for line in (tmp_path / concepts.RECALL).read_text().splitlines()]
    assert len({record["id"].split("-")[1] for record in records}) > 0.8 * RULES.concepts
    for record in records:
        facts = _readings(world, record)
        assert any((fact.attribute, fact.genre, fact.wording) not in told[fact.concept] for fact in facts)
        assert world.is_true(facts[0])
        assert facts[0].attribute in {attribute for attribute, _, _ in told[facts[0].concept]}


def test_every_fact_of_the_test_documents_is_asked_for(tmp_path):
    concepts.write(tmp_path, RULES, concepts.Counts(capped=1, oracle=1, validation=1, test=2))
    world, expected = concepts.load(tmp_path), []
    for line in (tmp_path / concepts.DOCUMENTS).read_text().splitlines():
        record = json.loads(line)
        if record["split"] == "test":
            firsts: dict[int, Fact] = {}
            for fact in world.stated(record["text"]):
                firsts.setdefault(fact.attribute, fact)
            expected += [(record["text"][: f.start - 1], f" {f.value}") for f in firsts.values()]
    asked = [json.loads(line) for line in (tmp_path / concepts.FACTS).read_text().splitlines()]
    assert sorted((record["given"], record["value"]) for record in asked) == sorted(expected)


def _name(world: World, text: str) -> str:
    return next(word for word in text.replace(".", " ").split() if word in world.names)


def _readings(world: World, asked: dict[str, str]) -> list[Fact]:
    """The fact whose value is asked for, by the wordings in which the sentence may go on."""
    text, found = asked["given"] + asked["value"], []
    for frame in (frame for frames in FRAMES.values() for frame in frames):
        facts = world.stated(text + frame.split("{value}")[1].replace("{name}", _name(world, text)))
        found += facts[-1:] if facts and facts[-1].end == len(text) else []
    return found


def test_the_same_arguments_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        concepts.write(tmp_path / name, RULES, concepts.Counts(2, 2, 1, 1))
    for name in concepts.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
