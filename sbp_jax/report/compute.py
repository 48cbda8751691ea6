"""The compute ledger of each arm: operations by stage, tokens by stream."""

from typing import Any

from sbp_jax.accounting.charges import KINDS, charges
from sbp_jax.report.results import Results, ledger, vocabulary

LEFT_OUT = (
    "Operations of matrix products and attention, by the formulas of docs/numbers.md; not in them are validation and"
    " scoring, the judge, tokenisation, shingles and filters"
)


def compute(results: Results) -> list[dict[str, Any]]:
    """An entry for each arm, of its first seed; what the arms share is charged to each of them.

    Seconds are not in it: a run that was killed would end with others.
    """
    base = next(iter(next(iter(results.trained.values())).values()))
    entries = vocabulary(base) if results.tokenizer is None else results.tokenizer.stats["vocab_size"]
    told = []
    for arm, charged in results.charges.items():
        made = charges(charged, results.charged, results.experiment.model, entries)
        streams = ledger(next(iter(results.trained[arm].values())))
        flops = {kind: getattr(made, kind) for kind in KINDS} | {"total": made.total}
        told.append(
            {
                "arm": arm,
                "flops": flops,
                "tokens": {
                    name: {unit: entry[unit] for unit in ("tokens", "epochs")} for name, entry in streams.items()
                },
                "note": ". ".join([LEFT_OUT, *made.notes]) + ".",
            }
        )
    return told
