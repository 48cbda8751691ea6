"""Pair relevance by the packaged embedder: documents about their seed's subject, about another one, and copies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Embedding, Execution
from sbp_jax.stages import embed
from tests.quality_inputs import inputs, measured

SUBJECTS = {
    "volcano": ("The volcano threw ash and lava", "Lava flowed down from the crater", "Magma rises before eruptions"),
    "bread": ("The baker kneads the dough", "Bread needs flour, water and yeast", "The loaf rose in the warm oven"),
    "chess": ("White moved the queen to check", "The grandmaster lost a rook", "A pawn was sacrificed in the opening"),
    "law": ("The court heard the appeal", "A judge ruled on the contract", "The lawyer asked the witness"),
    "whale": ("The whale dived for krill", "Dolphins live in pods at sea", "Whales sing to each other in the ocean"),
    "train": ("The express train left the station", "Rails were laid by the railway", "A locomotive pulls wagons"),
    "music": ("The violin played a sonata", "An orchestra tunes its instruments", "She composed a symphony"),
    "moon": ("The moon orbits the earth", "Astronauts walked in lunar dust", "A rocket flew to the moon"),
}
SHORT = Embedding(max_tokens=32)  # one padded length, one compilation


def _documents() -> tuple[list[tuple[str, str]], list[tuple[int, int]], list[dict[str, Any]]]:
    """Real documents, pairs of one subject, and synthetic ones: related to each seed, unrelated, and copies."""
    subjects = list(SUBJECTS.values())
    real = [(f"{first}. {second}.", "capped") for first, second, _ in subjects]
    real += [(f"{second}. {third}.", "capped") for _, second, third in subjects]
    count = len(subjects)
    pairs = [(place, place + count) for place in range(count)] + [(place + count, place) for place in range(count)]
    related = [{"text": f"{third}, {first}", "read": [place]} for place, (first, _, third) in enumerate(subjects)]
    others = [{"text": subjects[(place + 3) % count][2], "read": [place]} for place in range(count)]
    copies = [{"text": real[place][0], "read": [place]} for place in range(2)]
    return [*real, ("The validation", "validation"), ("The test", "test")], pairs, [*related, *others, *copies]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _inputs(tmp_path_factory.mktemp("plain"), SHORT)


def _inputs(folder: Path, embedding: Embedding) -> dict[str, Artifact]:
    real, pairs, synthetic = _documents()
    found = inputs(folder, real, pairs * 2, synthetic)  # twice: 20 random pairs at least
    output = Output(epath.Path(folder / "vectors"), Recipe("embed", 1, {}, {}), "embeddings")
    sources = {name: found[name] for name in ("documents", "splits")}
    return found | {"embeddings": embed.run(output, **sources, embedding=embedding, execution=Execution())}


def test_documents_about_another_subject_are_unrelated(made: dict[str, Artifact], tmp_path: Path) -> None:
    """Guards vectors that are joined to the wrong document."""
    artifact = measured(tmp_path / "quality", made, embedding=SHORT)
    found = json.loads(artifact.file("quality.json").read_text())
    rows = {row["group"]: row for row in found["rows"]}
    documents = [row for row in parquet.read(artifact).to_pylist() if row["group"] == "generated"]
    similar = np.array([row["similarity"] for row in documents])
    count = len(SUBJECTS)
    assert similar[-2:] == pytest.approx(1, abs=1e-4)  # the copies
    assert np.min(similar[:count]) > np.max(similar[count : 2 * count])
    limit = found["related_above"]["similarity"]
    assert rows["generated"]["unrelated"] == np.mean(similar <= limit) == pytest.approx(8 / 18, abs=0.13)
    assert rows["real"]["unrelated"] <= 0.2 < 0.9 < rows["random"]["unrelated"]
    kinds = found["distances"]
    assert kinds["true_pairs"]["mean"] < kinds["generated"]["mean"] < kinds["random"]["mean"]
    assert {name: sum(kind["counts"]) for name, kind in kinds.items()}["generated"] == len(documents)
    assert kinds["generated"]["mean"] == pytest.approx(1 - similar.mean(), abs=1e-6)
    assert len({tuple(kind["edges"]) for kind in kinds.values()}) == 1


@pytest.mark.parametrize("whiten", [False, True])
def test_similarities_of_real_pairs_are_those_of_stored_vectors(
    made: dict[str, Artifact], tmp_path: Path, whiten: bool
) -> None:
    """Guards the join by ordinals, and whitened vectors, which are made anew, here by a map of the same texts."""
    embedding = replace(SHORT, whiten=True, dimensions=10) if whiten else SHORT  # fewer than there are documents
    own = _inputs(tmp_path / "inputs", embedding) if whiten else made
    artifact = measured(tmp_path / "quality", own, embedding=embedding)
    vectors = {row["ordinal"]: np.array(row["embedding"]) for row in parquet.read(own["embeddings"]).to_pylist()}
    rows = parquet.read(artifact).to_pylist()
    pairs = [row for row in rows if row["group"] in ("true_pairs", "random")]
    expected = [vectors[row["seed"]] @ vectors[row["ordinal"]] for row in pairs]
    assert [row["similarity"] for row in pairs] == pytest.approx(expected, abs=1e-4)
    assert all(row["seed"] != row["ordinal"] for row in pairs)
    copies = [row["similarity"] for row in rows if row["group"] == "generated"][-2:]
    assert copies == pytest.approx([1, 1], abs=1e-4)
