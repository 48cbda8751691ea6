"""Stage `ask`: one arm on one task of lm-eval, item by item."""

import json

from sbp_jax.artifacts import Artifact, Output, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Model
from sbp_jax.tasks import answers
from sbp_jax.tasks import harness as lm_eval
from sbp_jax.tasks.local import Asked
from sbp_jax.training import export

VERSION = 1


def run(
    output: Output, *, trained: Artifact, model: Model, asked: Asked, harness: str | None, execution: Execution
) -> Artifact:
    """Asks the final model: a Parquet row for each item and metric, and `results.json`.

    On several hosts all of them ask the same, and compute the rows of a batch and the answers to write together.

    Args:
      harness: version of lm-eval, for the recipe.

    Raises:
      SbpError: lm-eval is not installed, there is no such task, or its data cannot be had.
    """
    lm_eval.prepare()
    from sbp_jax.tasks.lm import DecoderLM

    lm = DecoderLM(str(trained.folder(export.FINAL)), execution, model.dtype)
    found = lm_eval.ask(lm, asked)
    told = answers.results(found, asked.task, lm.cut, harness)
    table = answers.items(found)

    def write(writing: Writing) -> None:
        parquet.write(writing, table)

    output.shard(0, ".parquet", write)
    with output.writing("results.json") as writing:
        writing.path.write_text(json.dumps(told, indent=1, ensure_ascii=False))
    first = told["tasks"][0]
    values = {metric["metric"]: metric["value"] for metric in first["metrics"]}
    return output.finish({"items": first["items"], "cut": told["cut"], "values": values})
