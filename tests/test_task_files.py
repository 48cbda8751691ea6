"""Tasks from local files: the harness's own prompts, answers and metrics, whatever layout the records have."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sbp_jax.errors import SbpError
from sbp_jax.tasks import answers, harness, local
from sbp_jax.tasks.local import Asked

harness.prepare()

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.tasks import _yaml_loader  # noqa: E402

LETTERS = ("First", "Second", "Third", "Fourth")
# For each task records in its data set's own fields, the same ones in the shorter layout, and what is asked of them.
RECORDS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[list[Any]]]] = {
    "lambada_openai": (
        [{"text": "He looked at the sea and saw a ship"}],
        [{"context": "He looked at the sea and saw a", "continuation": "ship"}],
        [[("He looked at the sea and saw a", " ship")]],
    ),
    "arc_easy": (
        [
            {"question": "Which?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"},
            {"question": "What?", "choices": {"text": ["d", "e"], "label": ["A", "B"]}, "answerKey": "A"},
        ],
        [
            {"query": "Question: Which?", "choices": ["a", "b", "c"], "gold": 2},
            {"query": "Question: What?", "choices": ["d", "e"], "gold": 0},
        ],
        [
            [("Question: Which?\nAnswer:", f" {choice}") for choice in "abc"],
            [("Question: What?\nAnswer:", f" {choice}") for choice in "de"],
        ],
    ),
    "winogrande": (
        [{"sentence": "Sam thanked Kim because _ had helped.", "option1": "Sam", "option2": "Kim", "answer": "2"}],
        [
            {
                "context_options": ["Sam thanked Kim because Sam", "Sam thanked Kim because Kim"],
                "continuation": "had helped.",
                "gold": 1,
            }
        ],
        [[(f"Sam thanked Kim because {name}", " had helped.") for name in ("Sam", "Kim")]],
    ),
    "piqa": (
        [{"goal": "open a jar", "sol1": "twist", "sol2": "sing", "label": 0}],
        [{"query": "Question: open a jar\n", "choices": ["twist", "sing"], "gold": 0}],
        [[("Question: open a jar\nAnswer:", f" {choice}") for choice in ("twist", "sing")]],
    ),
    "triviaqa": (
        [{"question": "Which metal", "answer": {"value": "Gold", "aliases": ["Gold", "Au"]}}],
        [{"context": "Question: Which metal\nAnswer:", "answer": "Gold", "aliases": ["Gold", "Au"]}],
        [[("Question: Which metal?\nAnswer:",)]],
    ),
    "sciq": (
        [
            {
                "support": " Water boils.",
                "question": "What boils?",
                "correct_answer": "water",
                **{f"distractor{number}": f"d{number}" for number in (1, 2, 3)},
            }
        ],
        [],
        [[("Water boils.\nQuestion: What boils?\nAnswer:", f" {c}") for c in ("d1", "d2", "d3", "water")]],
    ),
    "webqs": (
        [{"question": "who?", "answers": ["Jo", "Al"]}],
        [],
        [[("Question: who?\nAnswer:", " Al"), ("Question: who?\nAnswer:", " Jo")]],
    ),
    "mmlu_anatomy": (
        [{"question": "Which?", "choices": list(LETTERS), "answer": 3, "subject": "anatomy"}],
        [],
        [
            [
                (
                    "The following are multiple choice questions (with answers) about anatomy.\n\n"
                    "Which?\nA. First\nB. Second\nC. Third\nD. Fourth\nAnswer:",
                    f" {letter}",
                )
                for letter in "ABCD"
            ]
        ],
    ),
}  # fmt: skip

RECORDS["arc_challenge"] = RECORDS["arc_easy"]


class Oracle(LM):
    """Prefers the continuation or writes the text that it is told to, and keeps what it was asked."""

    def __init__(self, *liked: str):
        super().__init__()
        self.liked, self.asked = liked, []  # type: ignore[var-annotated]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(-1.0 if request.args[1].strip() in self.liked else -9.0, False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        self.asked += [request.args for request in requests]
        return [-2.0 * len(request.args[0].split()) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self.liked[0] for _ in requests]


def plant(folder: Path, name: str, records: list[dict[str, Any]], packed: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if packed:
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    else:
        (folder / f"{name}.jsonl").write_text(lines)


def ask(folder: Path, task: str, *liked: str, **more: Any) -> tuple[dict[str, Any], Oracle]:
    oracle = Oracle(*liked)
    return harness.ask(oracle, Asked(task, data=str(folder), **more)), oracle


@pytest.mark.parametrize("task", RECORDS)
def test_what_is_asked_is_what_the_harness_asks(tmp_path, task):
    """Guards the turning of short records into full ones, and prompts of our own."""
    full, short, wanted = RECORDS[task]
    for packed, records in enumerate(filter(None, (full, short))):
        plant(tmp_path / str(packed), task, records, packed=bool(packed))
        found, oracle = ask(tmp_path / str(packed), task, "ship")
        once = [tuple(arguments[: len(wanted[0][0])]) for arguments in oracle.asked]
        assert once == [request for item in wanted for request in item]
        task_object = found["objects"][task]
        own = _yaml_loader.load_yaml(harness._manager(task).task_index[task].yaml_path, resolve_func=True)
        data = {"custom_dataset", "dataset_kwargs", "metadata", *harness.SPLITS}
        for field, value in own.items():
            if field not in {*data, "include", "tag", "num_fewshot", "fewshot_config"}:
                assert getattr(task_object.config, field) == value, f"{field} is not the harness's"


def test_every_layout_is_tested():
    assert {*RECORDS, "mmlu"} == {*local.LAYOUTS, "mmlu_anatomy"}


def values(found: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    told = answers.results(found, task, 0, "1")["tasks"][0]
    assert told["task"] == task
    return {metric["metric"]: metric for metric in told["metrics"]}


def test_chance_is_the_mean_of_one_in_so_many_choices(tmp_path):
    plant(tmp_path, "arc_easy", RECORDS["arc_easy"][1])
    told = values(ask(tmp_path, "arc_easy", "c", "e")[0], "arc_easy")
    assert told["acc"]["value"] == 0.5 and told["acc"]["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    plant(tmp_path, "webqs", RECORDS["webqs"][0])
    plant(tmp_path, "triviaqa_sm_sub", RECORDS["triviaqa"][1])
    plant(tmp_path, "lambada_openai", RECORDS["lambada_openai"][1])
    for task in ("webqs", "triviaqa", "lambada_openai"):
        found = ask(tmp_path, task, "au")[0]
        assert {metric["chance"] for metric in values(found, task).values()} == {None}, "nothing is guessed"


def test_items_say_what_was_chosen_and_written(tmp_path):
    plant(tmp_path, "arc_easy", RECORDS["arc_easy"][1])
    plant(tmp_path, "triviaqa", RECORDS["triviaqa"][1])
    table = answers.items(ask(tmp_path, "arc_easy", "c", "e")[0]).to_pylist()
    assert [(row["metric"], row["item"], row["value"], row["answer"]) for row in table if row["metric"] == "acc"] == [
        ("acc", 0, 1.0, "c"),
        ("acc", 1, 0.0, "e"),
    ]
    (row,) = answers.items(ask(tmp_path, "triviaqa", "  au ")[0]).to_pylist()
    assert (row["value"], row["answer"]) == (1.0, "au")


def test_all_of_mmlu_is_one_file_and_one_value(tmp_path):
    """Guards the subjects: 57 tasks of one file, each with its own records, weighted by their number."""
    subjects = [harness._manager("mmlu").task_index[leaf].cfg["dataset_name"] for leaf in
                harness._leaves(harness._manager("mmlu").task_index, "mmlu")]  # fmt: skip
    record = {"question": "Which?", "choices": list(LETTERS), "answer": 1}
    records = [record | {"subject": subject} for subject in subjects]
    records += [record | {"subject": "virology", "answer": 2}] * 3
    plant(tmp_path, "mmlu", records)
    found, oracle = ask(tmp_path, "mmlu", "B")
    told = answers.results(found, "mmlu", 0, "1")["tasks"]
    assert len(subjects) == 57 and len(oracle.asked) == 60 * 4
    assert told[0]["task"] == "mmlu" and told[0]["items"] == 60 and len(told[0]["members"]) == 57
    assert told[0]["metrics"][0]["value"] == pytest.approx(57 / 60) and told[0]["metrics"][0]["chance"] == 0.25
    assert ask(tmp_path, "mmlu_virology", "C")[0]["results"]["mmlu_virology"]["acc,none"] == 0.75
    plant(tmp_path, "mmlu", records[1:])
    with pytest.raises(SbpError, match="no record whose subject is"):
        ask(tmp_path, "mmlu")


def test_few_shot_examples_come_from_train_or_from_the_other_questions(tmp_path):
    """Guards against a question that is shown with its answer before it is asked."""
    questions = [{"query": f"Question: Q{n}?", "choices": ["yes", "no"], "gold": 0} for n in range(4)]
    plant(tmp_path, "arc_easy", questions)
    _, oracle = ask(tmp_path, "arc_easy", "yes", fewshot=2)
    for context, _ in oracle.asked:
        shown = [part.partition("?")[0] for part in context.split("Question: ")[1:]]
        assert len(shown) == len(set(shown)) == 3
    sentences = [{"sentence": f"S{n} _ ran.", "option1": "Jo", "option2": "Al", "answer": "1"} for n in range(4)]
    plant(tmp_path, "winogrande", sentences)  # its only split is the one for validation
    subject = {"choices": list(LETTERS), "answer": 1, "subject": "anatomy"}
    plant(tmp_path, "mmlu_anatomy", [subject | {"question": f"S{n}"} for n in range(4)])  # its sampler takes the first
    for task in ("winogrande", "mmlu_anatomy"):
        for context, _ in ask(tmp_path, task, fewshot=3)[1].asked:
            assert sorted(word for word in context.split() if re.fullmatch(r"S\d", word)) == ["S0", "S1", "S2", "S3"]
    plant(tmp_path, "arc_easy", [*questions[1:], questions[0] | {"split": "train"}])
    _, oracle = ask(tmp_path, "arc_easy", "yes", fewshot=1)
    assert all(context.startswith("Question: Q0?\nAnswer: yes\n\nQuestion: ") for context, _ in oracle.asked)
    assert len(oracle.asked) == 6


OTHERS = {  # tasks without a layout here: their records have the fields of their own data sets
    "hellaswag": [
        {"ind": 1, "activity_label": "Cooking", "ctx_a": "A man stirs.", "ctx_b": "he", "label": "2",
         "endings": ["runs [title] off.", "sings.", "eats.", "falls."]}
    ],
    "copa": [{"premise": "It rained.", "choice1": "It was wet.", "choice2": "It was dry.", "question": "effect",
              "label": 0, "idx": 0}],
    "boolq": [{"question": "is it gold", "passage": "It is gold.", "label": 1, "idx": 0}],
    "wikitext": [{"page": " = Gold = \n Gold is a metal ."}],
    "gsm8k": [{"question": f"One and one, {n}?", "answer": "1+1=2\n#### 2"} for n in range(8)],
}  # fmt: skip


def test_other_tasks_of_the_harness_read_local_files_too(tmp_path):
    """Guards every kind of request, and tasks whose records a function of the harness prepares."""
    for task, records in OTHERS.items():
        plant(tmp_path, task, records)
    found, oracle = ask(tmp_path, "hellaswag", "eats.")
    assert values(found, "hellaswag")["acc"]["value"] == 1.0
    assert oracle.asked[0] == ("Cooking: A man stirs. He", " runs. off.")
    assert values(ask(tmp_path, "copa", "it was wet.")[0], "copa")["acc"]["chance"] == 0.5
    assert values(ask(tmp_path, "boolq", "yes")[0], "boolq")["acc"]["value"] == 1.0
    found, oracle = ask(tmp_path, "wikitext")
    assert oracle.asked == [(" = Gold =\nGold is a metal .",)], "as its function takes text apart"
    rows = {row["metric"]: row for row in answers.items(found).to_pylist()}
    assert rows["byte_perplexity"]["weight"] == len(OTHERS["wikitext"][0]["page"].encode())
    found, oracle = ask(tmp_path, "gsm8k", "The answer is #### 2", limit=3)
    assert len(oracle.asked) == 3 and values(found, "gsm8k")["exact_match,strict-match"]["value"] == 1.0
    with pytest.raises(SbpError, match="shows 8 examples before each question, and its data has 7"):
        ask(tmp_path, "gsm8k", fewshot=8)


def test_a_wrong_name_is_told_with_near_ones():
    with pytest.raises(SbpError, match="has no task arc_eazy; did you mean.*arc_easy"):
        harness.known(["arc_eazy"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"query": "Question: Q?", "choices": ["a"]}', "line 1 lacks question, answerKey; a record has the fields"),
        ('{"query": "Question: Q?", "choices": ["a"], "gold": "b"}', "line 1 has a field of the wrong kind"),
        ('{"query"', "line 1 is not JSON"),
        ("3", "line 1 is no JSON object"),
        ("\n", "holds no record"),
        ('{"query": "Q", "choices": ["a"], "gold": 0, "split": "train"}', "has no record of the split test"),
    ],
)
def test_a_bad_record_is_told_with_its_place_and_the_remedy(tmp_path, content, said):
    (tmp_path / "arc_easy.jsonl").write_text(content)
    with pytest.raises(SbpError, match=said):
        ask(tmp_path, "arc_easy")


def test_missing_data_is_told_with_the_file_and_the_fields_it_needs(tmp_path, monkeypatch):
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(SbpError) as caught:
        ask(tmp_path, "arc_easy")
    for said in ("has no arc_easy.jsonl", "allenai/ai2_arc, ARC-Easy", "question, choices, answerKey", "query"):
        assert said in str(caught.value)
    with pytest.raises(SbpError, match="no --data folder is given.*fields choice1|question"):
        harness.ask(Oracle(), Asked("sciq"))
    with pytest.raises(SbpError, match="there is no folder nowhere"):
        ask(Path("nowhere"), "arc_easy")


def test_without_the_harness_its_package_is_named(monkeypatch):
    monkeypatch.setattr(harness, "version", lambda: None)
    with pytest.raises(SbpError, match="pip install -r requirements-eval.txt"):
        harness.prepare()
