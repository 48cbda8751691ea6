"""Stage `quality`: synthetic documents beside real ones, measured in the same way.

Documents of each kind are taken evenly: capped ones, held-out ones, the second documents of accepted pairs and of
random ones, all that was generated, and what the filters kept and rejected. `docs/quality.md` says what is measured.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Embedding, Execution, Model, Tokenizer
from sbp_jax.quality.documents import Sources, collect, measure
from sbp_jax.quality.measures import JUDGED, MEASURES, QUALITY
from sbp_jax.quality.relevance import source
from sbp_jax.quality.rows import rows
from sbp_jax.quality.samples import CAPPED, REAL, real
from sbp_jax.text import contamination
from sbp_jax.text.tokenizer import load

VERSION = 3


def run(
    output: Output,
    *,
    synthesized: Artifact,
    synthetic: Artifact,
    documents: Artifact,
    splits: Artifact,
    pairs: Artifact,
    embeddings: Artifact,
    tokenizer: Artifact,
    base: Artifact | None = None,
    judge: Artifact | None = None,
    measured: int,
    about: Mapping[str, Any],
    embedding: Embedding,
    model: Model | None = None,
    settings: Tokenizer,
    evaluations: contamination.Evaluations,
    execution: Execution,
) -> Artifact:
    """Writes `quality.json` and a Parquet row for each measured document, from which its numbers follow.

    Memory holds the measured documents with their n-grams, and one shard; the corpus and all synthetic documents are
    read once. A run that was killed begins this stage anew.

    Args:
      pairs: of related documents, whatever the synthesizer was tuned on: the reference.
      base: where the base model embeds.
      judge: verdicts of a language model, where one was asked.
      measured: documents of each kind.
      about: where the synthetic documents come from, as it shall stand in the result.

    Raises:
      SbpError: the embedder or a file of an evaluation set cannot be read.
    """
    sources = Sources(documents, splits, pairs, synthesized, synthetic)
    own_tokenizer = load(tokenizer.file("tokenizer.json"), settings)

    def sample(wanted: int) -> list[str]:
        return real(documents, splits, CAPPED, REAL, wanted)["text"].to_pylist()

    vectors = source(embeddings, tokenizer, base, embedding, model, settings, execution, sample)
    chosen = collect(sources, measured)
    table, sizes = measure(chosen, sources, own_tokenizer, contamination.read(evaluations), vectors, output.label)

    def write(writing: Writing) -> None:
        parquet.write(writing, table)

    output.shard(0, ".parquet", write)
    numbers = rows(table, sizes)
    measures = {name: asdict(entry) for name, entry in MEASURES.items()}
    measures["duplicates"]["label"] = f"Duplicate@{numbers['drawn']:,}"
    found: dict[str, Any] = {**about, "measures": measures} | numbers
    found |= {"judged": None if judge is None else json.loads(judge.file(JUDGED).read_text())}
    with output.writing(QUALITY) as writing:
        writing.path.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    return output.finish({"documents": table.num_rows})
