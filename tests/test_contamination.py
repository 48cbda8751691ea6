"""Items of evaluation sets in documents: what leaks is found, what only looks like it is not."""

import gzip
import json
from pathlib import Path

import pytest
from etils import epath

from sbp_jax.errors import SbpError
from sbp_jax.text.contamination import Items
from sbp_jax.text.shingles import words

STORY = "She gripped the rail and looked down at the water, which was grey and very far below her feet that morning."
LONG = {"context": STORY, "continuation": "morning"}
QUESTION = {
    "context": "Question: Brunswick, Lancastrian and Pearl Pickler are types of which vegetable?\nAnswer:",
    "answer": "Onion",
    "aliases": ["the united states", "David Lloyd George, 1st Earl Lloyd George of Dwyfor and of"],
}
SHORT_QUESTION = {"choices": ["a kind of animal from Africa", "a plant"], "query": "Question: What is a dik-dik?\n"}
TINY = {"query": "Which country?", "choices": ["the united states", "France"], "gold": 1}
NUMBERS = {"query": " ".join(map(str, range(100, 140))), "gold": 0}
MOON = {  # the only text long enough is a wrong choice
    "question": "The Earth's Moon is",
    "choices": [
        "always much closer to the Earth than it is to the Sun",
        "never seen by day from any place on Earth at all",
    ],
}
NESTED = {"doc": {"choices": [{"text": "Whoever reads the third of the nested choices has found a text in a record"}]}}
CLOZE = {  # the wrong option is the longer one
    "sentence": "_ forgot to feed the cats before leaving home",
    "option1": "Ann",
    "option2": "Doctor Robert Smith",
    "answer": "1",
}
HALF = {"query": "one two three four \ud83d five six seven eight nine"}
ITEMS = [LONG, QUESTION, SHORT_QUESTION, TINY, NUMBERS, MOON, NESTED, HALF, CLOZE]


def write(path: Path, records: list[dict]) -> epath.Path:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return epath.Path(path)


@pytest.fixture
def items(tmp_path) -> Items:
    return Items([write(tmp_path / "set.jsonl.gz", ITEMS)])


LEAKED = [
    (1, STORY),
    (1, f"Before it. {' '.join(STORY.split()[4:17])} and after it."),  # any 13 words in a row
    (1, STORY.upper().replace(" ", "\n* ")),
    (2, "Quiz night: Brunswick, Lancastrian and Pearl Pickler are types of which vegetable? The onion!"),
    (3, "What is a dik-dik? A kind of animal from Africa."),
    (3, "It is a kind of animal from Africa. What is a dik-dik?"),
    (3, "Question: What is a dik-dik?\nAnswer: a kind of animal from Africa"),
    (6, "The Earth's Moon is always much closer to the Earth than it is to the Sun."),
    (7, "Whoever reads the third of the nested choices has found a text in a record, or a leak."),
    (9, "It is known that Ann forgot to feed the cats before leaving home, again."),
    (9, "It is known that doctor Robert Smith forgot to feed the cats before leaving home."),
]
INNOCENT = [
    "In the united states of America, which country is not asked. Onion. France.",
    " ".join(STORY.split()[4:16]),  # 12 words in a row
    " ".join(STORY.split()[:12]) + " but " + " ".join(STORY.split()[12:]),
    "Brunswick, Lancastrian and Pearl Pickler are types of a vegetable",
    "David Lloyd George, 1st Earl Lloyd George of Dwyfor and of",  # an answer is no item
    "What is a dik-dik?",
    "The Earth's Moon is full tonight.",
    "A table: " + " ".join(map(str, range(100, 140))),
    "",
]


@pytest.mark.parametrize("line, text", LEAKED, ids=range(len(LEAKED)))
def test_a_leaked_item_is_found_with_its_file_and_line(items, line, text):
    found = items.search(words(["nothing here", text, "nor here"]))
    assert {number: (hit.file, hit.line) for number, hit in found.items()} == {1: ("set.jsonl.gz", line)}


@pytest.mark.parametrize("text", INNOCENT, ids=range(len(INNOCENT)))
def test_an_innocent_text_is_not_contaminated(items, text):
    """An answer such as a country's name, taken for an item, throws out half of an encyclopedia."""
    assert items.search(words([text])) == {}


def test_what_stands_in_front_of_every_item_is_none(tmp_path):
    """Instructions that a set repeats are on every page about such sets; a passage with several questions leaks."""
    template = "The following are multiple choice questions with answers about the history of the world at large."
    records = [
        {
            "instruction": template,
            "passage": f"{STORY} {STORY[::-1]} {STORY}",
            "query": f"What is in the passage {number}?",
        }
        for number in range(60)
    ]
    items = Items([write(tmp_path / "set.jsonl", records)])
    found = items.search(words([template, f"{STORY} {STORY[::-1]} {STORY}"]))
    assert {number: hit.line for number, hit in found.items()} == {1: 1}
    assert items.templates == 1


def test_blanks_in_many_fields_are_filled_in_bounded_time(tmp_path):
    """Filling what was filled before doubles the texts with every field."""
    turns = [
        {"turn": f"In sentence {number} of these the word _ is the one that was left out"} for number in range(200)
    ]
    items = Items([write(tmp_path / "set.jsonl", [{"turns": turns, "answer": "blue"}])])
    found = items.search(words(["in sentence 7 of these the word blue is the one that was left out"]))
    assert found[0].line == 1 and len(items._texts) < 1000


def test_no_item_is_found_across_two_documents(items):
    tokens = STORY.split()
    assert items.search(words([" ".join(tokens[:10]), " ".join(tokens[10:])])) == {}
    question = "Brunswick, Lancastrian and Pearl Pickler are types", "of which vegetable?"
    assert items.search(words(question)) == {}


def test_items_that_no_rule_can_find_are_counted(items, tmp_path):
    assert (items.items, items.too_short) == (9, 2)
    assert Items([]).search(words([STORY, ""])) == {}
    assert Items([write(tmp_path / "b.jsonl", [TINY])]).search(words([STORY])) == {}


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": "b"}\n{no json\n', "a.jsonl.gz, line 2: .*JSON Lines"),
        (b'{"a": "b"}\n\n["x"]\n', "a.jsonl.gz, line 3: no JSON object"),
        (b"\xff\xfe\n", "a.jsonl.gz, line 1"),
    ],
)
def test_a_set_that_is_no_json_lines_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(SbpError, match=message):
        Items([epath.Path(tmp_path / "a.jsonl.gz")])


def test_a_truncated_set_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", [{"text": f"{STORY} {number}"} for number in range(500)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SbpError, match="a.jsonl.gz cannot be read to its end"):
        Items([path])
