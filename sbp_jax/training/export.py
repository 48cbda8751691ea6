"""What a finished run leaves in its artifact: models, metrics and the ledger of tokens."""

import json
from typing import Any

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.model import huggingface
from sbp_jax.model.decoder import padded_vocabulary
from sbp_jax.training.loop import METRICS, Finished, Run

FINAL, BEST, LEDGER = "final", "best", "ledger.json"


def save(output: Output, run: Run, finished: Finished, end_of_document: int) -> Artifact:
    """Writes the models at the end and at the least validation loss, the ledger, and the manifest.

    Raises:
      RuntimeError: the tokens seen are not those planned, which is a fault of the program.
    """
    ledger = {name: _entry(run, name, seen) for name, seen in finished.ledger.items()}
    for name, entry in ledger.items():
        for unit in ("rows", "tokens"):
            if entry[unit] != entry[f"planned_{unit}"]:
                planned = entry[f"planned_{unit}"]
                raise RuntimeError(f"{output.label}: saw {entry[unit]} {unit} of stream {name}, planned {planned}")
    config = huggingface.to_config(
        run.model, padded_vocabulary(run.vocabulary), run.optimization.context, end_of_document
    )
    for folder, parameters in ((FINAL, finished.final), (BEST, finished.best)):
        with output.writing(f"{folder}/{huggingface.CONFIG}") as writing:
            writing.path.write_text(json.dumps(config, indent=1))
        with output.writing(f"{folder}/{huggingface.WEIGHTS}") as writing:
            writing.path.write_bytes(huggingface.to_bytes(parameters))
    with output.writing(LEDGER) as writing:
        writing.path.write_text(json.dumps(ledger, indent=1))
    with output.writing(METRICS) as writing:  # written while training; from here on it counts
        writing.rows = run.steps
    stats: dict[str, Any] = {
        "steps": run.steps,
        "tokens": sum(entry["tokens"] for entry in ledger.values()),
        "best_step": finished.best_step,
        "best_validation": finished.best_validation,
    }
    return output.finish(stats)


def _entry(run: Run, name: str, seen: dict[str, int]) -> dict[str, Any]:
    """A stream's line of the ledger; where rows differ in targets, as pairs do, rows are the plan."""
    rows, row_tokens = run.plan.rows[name], run.plan.row_tokens
    return {
        "planned_rows": rows,
        "rows": seen["rows"],
        "planned_tokens": seen["tokens"] if row_tokens is None else rows * row_tokens,
        "tokens": seen["tokens"],
        "epochs": run.plan.epochs[name],
    }
