"""A corpus from the world of concepts, as files that a config reads; `python -m sbp_jax.study.concepts --to FOLDER`.

`documents.jsonl`: each document with the split that it belongs to. `facts.jsonl`: each fact of a test document, its
value and the document up to there, which is given. `recall.jsonl`: the same of facts that capped documents tell, in
wordings that no capped document of their concept has used. `world.json`: the rules, for `sbp_jax.study.truth`.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sbp_jax.study.world import Fact, Rules, Told, World

FILES = DOCUMENTS, FACTS, RECALL, WORLD = "documents.jsonl", "facts.jsonl", "recall.jsonl", "world.json"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Documents of each concept, by split."""

    capped: int = 4
    oracle: int = 236  # beside the capped ones, which the oracle reads too
    validation: int = 2
    test: int = 4


def write_from(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the files of a world by the fields of `Rules` and `Counts` together."""
    names = {entry.name for entry in dataclasses.fields(Rules)}
    rules = Rules(**{name: value for name, value in options.items() if name in names})
    write(folder, rules, Counts(**{name: value for name, value in options.items() if name not in names}))


def write(folder: Path, rules: Rules, counts: Counts) -> None:
    """Writes the four files; equal arguments give equal bytes."""
    world = World(rules)
    random = np.random.default_rng((rules.seed, 1))
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[int, list[Fact]] = {concept: [] for concept in range(rules.concepts)}  # in capped documents
    with (folder / DOCUMENTS).open("w") as stream, (folder / FACTS).open("w") as asked:
        for split, number in dataclasses.asdict(counts).items():
            for concept, index in product(range(rules.concepts), range(number)):
                document, name = world.document(concept, random), f"{split}-{concept}-{index}"
                stream.write(_line(world, name, document, split))
                if split == "capped":
                    told[concept] += document.facts
                if split == "test":
                    asked.writelines(_asked(name, document))
    with (folder / RECALL).open("w") as asked:
        for concept, index in product(range(rules.concepts), range(counts.test)):
            asked.writelines(_asked(f"recall-{concept}-{index}", world.retold(concept, told[concept], random)))
    (folder / WORLD).write_text(json.dumps(dataclasses.asdict(rules), indent=1))


def load(folder: Path) -> World:
    return World(Rules(**json.loads((folder / WORLD).read_text())))


def _line(world: World, name: str, told: Told, split: str) -> str:
    record = {"id": name, "text": told.text, "source": world.names[told.concept], "nats": told.nats, "split": split}
    return json.dumps(record) + "\n"


def _asked(name: str, told: Told) -> list[str]:
    """A line for each fact where it is told first; the space before a value is the value's, as it is in tokens."""
    asked = []
    for fact in {fact.attribute: fact for fact in reversed(told.facts)}.values():
        given, value = told.text[: fact.start - 1], told.text[fact.start - 1 : fact.end]
        asked.append(json.dumps({"id": f"{name}-{fact.attribute}", "given": given, "value": value}) + "\n")
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    for group in (Rules, Counts):
        for entry in dataclasses.fields(group):
            kind = type(entry.default)
            parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default, metavar="N")
    options = vars(parser.parse_args())
    write_from(options.pop("to"), options)


if __name__ == "__main__":
    main()
