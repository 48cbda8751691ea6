"""What a finished run leaves in its artifact: models, metrics and the ledger of tokens."""

import json
from contextlib import closing
from typing import Any

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Tokenizer
from sbp_jax.model import huggingface
from sbp_jax.parallel import hosts
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training.interruption import Watchdog
from sbp_jax.training.loop import METRICS, Finished, Run, best_parameters

FINAL, BEST, LEDGER = "final", "best", "ledger.json"


def save(output: Output, run: Run, finished: Finished, tokenizer: Artifact, settings: Tokenizer) -> Artifact:
    """Writes the models at the end and at the least validation loss, the ledger, and the manifest.

    The final model's arrays are given up before the best ones are read: two models are never in memory.

    Raises:
      RuntimeError: the tokens seen are not those planned, which is a fault of the program.
    """
    ledger = {name: _entry(run, name, seen) for name, seen in finished.ledger.items()}
    for name, entry in ledger.items():
        for unit in ("rows", "tokens"):
            if entry[unit] != entry[f"planned_{unit}"]:
                planned = entry[f"planned_{unit}"]
                raise RuntimeError(f"{output.label}: saw {entry[unit]} {unit} of stream {name}, planned {planned}")
    with closing(Watchdog(output.path, finished.setup.execution.stall_seconds)) as watchdog:
        watchdog.progress(run.steps)
        _save_model(output, FINAL, run, finished.parameters, tokenizer, settings)
        watchdog.alive()
        best = finished.parameters
        if finished.best_step != run.steps:
            finished.parameters.clear()
            best = best_parameters(finished, output.path)
        _save_model(output, BEST, run, best, tokenizer, settings)
    with output.writing(LEDGER) as writing:
        writing.path.write_text(json.dumps(ledger, indent=1))
    with output.writing(METRICS) as writing:  # written while training; from here on it counts
        writing.rows = run.steps
    stats: dict[str, Any] = {
        "steps": run.steps,
        "tokens": sum(entry["tokens"] for entry in ledger.values()),
        "best_step": finished.best_step,
        "best_validation": finished.best_validation,
        "goodput": finished.goodput,
    }
    return output.finish(stats)


def _save_model(
    output: Output, folder: str, run: Run, parameters: Any, tokenizer: Artifact, settings: Tokenizer
) -> None:
    path, context, file = output.path / folder, run.optimization.context, tokenizer.file("tokenizer.json")
    end_of_document = text_tokenizer.load(file, settings).end_of_document
    names = huggingface.save(path, parameters, run.model, run.vocabulary, context, end_of_document)
    if hosts.is_first():
        names += huggingface.save_tokenizer(path, file, settings.end_of_document, context)
    for name in names:
        with output.writing(f"{folder}/{name}"):
            pass


def _entry(run: Run, name: str, seen: dict[str, int]) -> dict[str, Any]:
    """A stream's line of the ledger; where rows differ in targets, as pairs do, rows are the plan.

    A stream that holds synthetic and real text says how many of its tokens are synthetic, and how many passes over the
    real stream the others would make.
    """
    rows, row_tokens = run.plan.rows[name], run.plan.row_tokens
    both: dict[str, Any] = {}
    if name in run.plan.synthetic:
        synthetic = run.plan.synthetic[name]
        real = run.plan.available["real"] * (row_tokens or 0)
        both = {"synthetic_tokens": synthetic, "real_epochs": (seen["tokens"] - synthetic) / real}
    return {
        "planned_rows": rows,
        "rows": seen["rows"],
        "planned_tokens": seen["tokens"] if row_tokens is None else rows * row_tokens,
        "tokens": seen["tokens"],
        "epochs": run.plan.epochs[name],
        **both,
    }
