"""The data card of an exported corpus: what is in it, how it was made, how good it is."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from sbp_jax.artifacts import Artifact
from sbp_jax.config import Arm, Experiment

TEMPLATE = Path(__file__).with_name("data_card.md.j2")
SHOWN = 20  # sources named
GROUPS = {"real": "real", "generated": "as generated", "accepted": "in this corpus"}
MEASURES = ("repetition_rate", "duplicates", "unrelated", "pair_copying", "corpus_copying", "novel_1", "words")


@dataclass
class Counts:
    """Documents and bytes of one kind, and how many come from each source."""

    documents: int = 0
    bytes: int = 0
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, documents: int, size: int, sources: Counter[str]) -> None:
        self.documents, self.bytes = self.documents + documents, self.bytes + size
        self.sources += sources


def card(
    experiment: Experiment,
    arm: Arm,
    synthetic: Artifact,
    counts: Mapping[str, Counts],
    quality: Artifact | None,
    form: str,
    schema: pa.Schema,
) -> str:
    """Markdown with the header that `datasets` reads, which cannot tell from JSON what a column of nulls holds."""
    stats, sources = synthetic.stats, counts["real"].sources if "real" in counts else Counter[str]()
    rejected = Counter({name.removeprefix("rejected_"): n for name, n in stats.items() if name.startswith("rejected_")})
    told = ", ".join(f"{reason} {number:,}" for reason, number in rejected.most_common() if number)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["cell"] = _cell
    return environment.from_string(TEMPLATE.read_text()).render(
        experiment=experiment,
        arm=arm,
        counts=counts,
        form=form,
        features={column.name: _feature(column.type) for column in schema},
        rejected=f"rejected {told}" if told else "nothing rejected",
        written=stats["documents"],
        kept=stats["accepted"],
        quality=None if quality is None else _quality(json.loads(quality.file("quality.json").read_text())),
        sources=sources.most_common(SHOWN),
        more=max(0, len(sources) - SHOWN),
    )


def _feature(kind: pa.DataType) -> str:
    """A type as `datasets` writes it into a header."""
    if pa.types.is_list(kind):
        return f"sequence: {kind.value_type}"
    return f"dtype: {'float32' if kind == pa.float32() else kind}"


def _quality(found: dict[str, Any]) -> dict[str, Any]:
    """Heads, rows and definitions of the table of measures."""
    rows = {row["group"]: row for row in found["rows"] if row["group"] in GROUPS}
    groups = [group for group in GROUPS if group in rows]
    measures = {name: found["measures"][name] for name in MEASURES}
    return {
        "heads": ["measure", *(GROUPS[group] for group in groups)],
        "rows": [
            [entry["label"], *(_value(rows[group].get(name)) for group in groups)] for name, entry in measures.items()
        ],
        "definitions": {entry["label"]: entry["definition"] for entry in measures.values()},
    }


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _cell(text: str) -> str:
    """A text of the corpus as it may stand in a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
