"""A corpus from the world of concepts, as files that a config reads; `python -m sbp_jax.study.concepts --to FOLDER`.

`documents.jsonl`: each document with the split that it belongs to. `facts.jsonl`: each fact of a test document, its
value and the document up to there, which is given. `recall.jsonl`: the same of facts that capped documents tell, in
wordings that no capped document of their concept has used. `vectors-NOISE.parquet`: for each capped document a vector
of its concept, or for that share of them of any concept, so that related pairs are found as well as one wants.
`world.json`: the rules, for `sbp_jax.study.truth`.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sbp_jax.study.world import Fact, Rules, Told, World

FILES = DOCUMENTS, FACTS, RECALL, WORLD = "documents.jsonl", "facts.jsonl", "recall.jsonl", "world.json"
NOISES = (0.0, 0.25, 0.5)  # shares of capped documents with the vector of any concept


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
    """Writes the files, that of the rules last; equal arguments give equal bytes."""
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
    for noise in NOISES:
        pq.write_table(_vectors(rules, counts, noise), folder / f"vectors-{noise:g}.parquet")
    (folder / WORLD).write_text(json.dumps(dataclasses.asdict(rules), indent=1))


def load(folder: Path) -> World:
    return World(Rules(**json.loads((folder / WORLD).read_text())))


def _line(world: World, name: str, told: Told, split: str) -> str:
    record = {"id": name, "text": told.text, "source": world.names[told.concept], "nats": told.nats, "split": split}
    return json.dumps(record) + "\n"


def _vectors(rules: Rules, counts: Counts, noise: float) -> pa.Table:
    """Unit vectors of the capped documents, equal where they are told to be of one concept, and else orthogonal."""
    random = np.random.default_rng((rules.seed, 2))
    owner_N = np.repeat(np.arange(rules.concepts), counts.capped)
    wrong_N = random.random(len(owner_N)) < noise
    told_N = np.where(wrong_N, random.integers(rules.concepts, size=len(owner_N)), owner_N)
    names = [f"capped-{concept}-{index}" for concept, index in product(range(rules.concepts), range(counts.capped))]
    return pa.table({"id": names, "embedding": list(np.eye(rules.concepts, dtype=np.float32)[told_N])})


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
