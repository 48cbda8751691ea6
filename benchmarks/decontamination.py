"""How many leaked items of evaluation sets the rule of decontamination finds, and what it takes for one by mistake.

    python benchmarks/decontamination.py SET.jsonl.gz ...

Each item is planted, in several spellings, in the middle of an article of `data/wikipedia_vital`; the articles as they
are show the false alarms. A record holds its question in `query`, `context`, `question` or `context_options`, its
answer in `answer`, `continuation`, or `choices` at `gold`.
"""

import argparse
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from sbp_jax.text.contamination import Items
from sbp_jax.text.shingles import words

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from texts import CORPUS

SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "question": lambda question, answer: question,
    "question and answer": lambda question, answer: f"{question} {answer}",
    "Question: Answer:": lambda question, answer: f"Question: {question}\nAnswer: {answer}",
    "in capitals, a word a line": lambda question, answer: f"{question} {answer}".upper().replace(" ", "\n"),
    "in dashes and quotes": lambda question, answer: re.sub(r"[.,;:!?]", " --", f'"{question}" "{answer}"'),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="+", type=epath.Path)
    sets = parser.parse_args().sets
    with gzip.open(CORPUS, "rt") as stream:
        articles = [json.loads(line)["text"] for line in stream]
    print(f"{'':<28}{'items':>7}{'too short':>11}  found of the others, spelled as")
    print(f"{'':<46}  " + "  ".join(SPELLINGS))
    for file in sets:
        items, records = Items([file]), read(file)
        shares = []
        for name, spelling in SPELLINGS.items():
            planted = [
                plant(articles[place % len(articles)], spelling(*of)) for place, of in enumerate(map(asked, records))
            ]
            possible = len(records) - (items.too_short if name != "question" else 0)
            shares.append(f"{len(items.search(words(planted))) / possible:>{len(name)}.3f}")
        print(f"{file.name:<28}{items.items:>7,}{items.too_short:>11,}  " + "  ".join(shares))
    alarms = Items(sets).search(words(articles))
    print(f"false alarms: {len(alarms):,} of {len(articles):,} articles")
    for place, item in alarms.items():
        print(f"  {articles[place][:60]!r}: {item.file}, line {item.line}: {item.text[:80]!r}")


def read(file: epath.Path) -> list[dict[str, Any]]:
    content = file.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if file.suffix == ".gz" else content).splitlines()]


def asked(record: dict[str, Any]) -> tuple[str, str]:
    """The question and the right answer of an item, without labels."""
    question = next((record[name] for name in ("query", "context", "question") if name in record), None)
    if question is None:
        question = record["context_options"][record["gold"]]
    answer = next((record[name] for name in ("answer", "continuation") if name in record), None)
    if answer is None:
        answer = record["choices"][record["gold"]]
    return re.sub(r"^\s*Question:\s*|\s*Answer:\s*$", "", question).strip(), answer


def plant(article: str, text: str) -> str:
    middle = article.find(" ", len(article) // 2)
    return f"{article[:middle]} {text} {article[middle:]}"


if __name__ == "__main__":
    main()
