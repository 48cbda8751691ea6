"""A corpus from the world of concepts, as files that a config reads; `python -m sbp_jax.study.concepts --to FOLDER`.

`documents.jsonl`: each document with the split that it belongs to. `recall.jsonl`: the facts of capped documents in
wordings that no capped document of their concept has used, with the places of the values. `world.json`: the rules, for
`sbp_jax.study.truth`.
"""

import argparse
import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sbp_jax.study.world import Fact, Rules, Told, World

FILES = DOCUMENTS, RECALL, WORLD = "documents.jsonl", "recall.jsonl", "world.json"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Documents of each concept, by split."""

    capped: int = 4
    oracle: int = 236  # beside the capped ones, which the oracle reads too
    validation: int = 2
    test: int = 4


def write(folder: Path, rules: Rules, counts: Counts) -> None:
    """Writes the three files; equal arguments give equal bytes."""
    world = World(rules)
    random = np.random.default_rng((rules.seed, 1))
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[int, list[Fact]] = {concept: [] for concept in range(rules.concepts)}  # in capped documents
    with (folder / DOCUMENTS).open("w") as stream:
        for split, number in dataclasses.asdict(counts).items():
            for concept, index in product(range(rules.concepts), range(number)):
                document = world.document(concept, random)
                stream.write(_line(world, f"{split}-{concept}-{index}", document, {"split": split}))
                if split == "capped":
                    told[concept] += document.facts
    with (folder / RECALL).open("w") as stream:
        for concept, index in product(range(rules.concepts), range(counts.test)):
            document = world.retold(concept, told[concept], random)
            if document.facts:
                stream.write(_line(world, f"recall-{concept}-{index}", document, {}))
    (folder / WORLD).write_text(json.dumps(dataclasses.asdict(rules), indent=1))


def load(folder: Path) -> World:
    return World(Rules(**json.loads((folder / WORLD).read_text())))


def _line(world: World, identity: str, told: Told, more: dict[str, str]) -> str:
    facts = [[fact.start, fact.end] for fact in told.facts]
    record: dict[str, Any] = {"id": identity, "text": told.text, "source": world.names[told.concept], "facts": facts}
    return json.dumps(record | {"nats": told.nats} | more) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    for group in (Rules, Counts):
        for entry in dataclasses.fields(group):
            kind = type(entry.default)
            parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default, metavar="N")
    options = vars(parser.parse_args())
    folder = options.pop("to")
    names = {entry.name for entry in dataclasses.fields(Rules)}
    rules = Rules(**{name: value for name, value in options.items() if name in names})
    counts = Counts(**{name: value for name, value in options.items() if name not in names})
    write(folder, rules, counts)


if __name__ == "__main__":
    main()
