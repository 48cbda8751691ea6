"""The evidence about pairs for a terminal."""

from collections.abc import Iterable
from typing import Any, Literal

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sbp_jax.report.pair_samples import excerpt
from sbp_jax.report.summary import printable
from sbp_jax.report.svg import compact

BAR = 24  # characters of the longest bar
SIDE_BY_SIDE = 100  # columns of a terminal from which two documents fit next to each other
SHOWN = 500  # characters of a document
NAME = 18  # characters of a source's name in the table of sources
RECALL = {
    "recall_at_1": "nearest one",
    "recall_at_10": "10 nearest",
    "recall_at_k": "all that are kept",
    "recall_above_threshold": "those above the threshold",
}


def show(evidence: dict[str, Any], samples: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Prints the evidence, and the samples by verdict; without colours, shared runs stand in [[ ]]."""
    for title, content in _sections(evidence):
        console.print(Text(f"\n{title}", "bold"))
        console.print(content)
    marks = console.color_system is None
    for verdict, rows in samples.items():
        number = evidence["verdicts"][verdict]
        console.print(Text(f"\n{verdict}: {len(rows)} of {number:,}, chosen by a hash", "bold"))
        for row in rows:
            console.print(_pair(row, console.width, marks))


def _sections(evidence: dict[str, Any]) -> Iterable[tuple[str, RenderableType]]:
    verdicts = evidence["verdicts"]
    yield f"{sum(verdicts.values()):,} pairs by verdict", _verdicts(verdicts)
    yield f"Similarity of {evidence['neighbors']:,} neighbours", _histogram(evidence)
    yield "What other thresholds would give (~: at most; other rules were not asked)", _sweep(evidence)
    if evidence["recall"]:
        search = evidence["search"]
        audited = f", audited on {search['audited_queries']:,} documents" if search["audited_queries"] else ""
        reason = f": {search['backend_reason']}" if search["backend_reason"] else ""
        yield f"Neighbours that the search ({search['backend']}{reason}) finds{audited}", _recall(evidence["recall"])
    rates = evidence["near_duplicates"]
    if any(rates["near_duplicates"]):
        yield f"Near-duplicates (containment at least {evidence['near_duplicate']:g}) by similarity", _rates(rates)
    if evidence["hubs"]:
        yield "Documents that are most often a neighbour above the threshold", _hubs(evidence["hubs"])
    sources = evidence["sources"]
    if len(sources["pairs"]) > 1:
        yield "Accepted pairs: source of the first document down, of the second across", _sources(sources)
    screened = evidence["screened"]
    if screened["documents"]:
        yield f"{screened['documents']:,} documents screened", _screened(screened)


def _verdicts(verdicts: dict[str, int]) -> Table:
    table, total = _table("verdict", "pairs", "share", ""), sum(verdicts.values())
    for verdict, number in verdicts.items():
        table.add_row(verdict, f"{number:,}", f"{number / total:.1%}", _bar(number, max(verdicts.values())))
    return table


def _histogram(evidence: dict[str, Any]) -> Table:
    edges, counts = evidence["histogram"]["edges"], evidence["histogram"]["neighbors"]
    table = _table("from", "neighbours", "")
    for low, number in zip(edges, counts, strict=False):
        kept = "green" if low > evidence["threshold"] - 1e-6 else "bright_black"
        table.add_row(f"{low:.3f}", f"{number:,}", _bar(number, max(counts), kept))
    return table


def _sweep(evidence: dict[str, Any]) -> Table:
    table = _table("threshold", "neighbours", "documents", "accepted", "their documents", "their tokens")
    for row in evidence["sweep"]:
        own = row["threshold"] == round(evidence["threshold"], 6)
        cells = [f"{row['threshold']:.3g}{' *' if own else '  '}", f"{row['neighbors']:,}", f"{row['documents']:,}"]
        for name in ("accepted", "accepted_documents", "tokens"):
            if row[name] is None:
                cells.append("")
            else:
                number = compact(row[name]) if name == "tokens" else f"{row[name]:,}"
                cells.append(f"{'' if row['certain'] else '~'}{number}")
        table.add_row(*cells, style="bold" if own else "")
    return table


def _recall(recall: dict[str, float]) -> Table:
    table = _table("of the true ones", "found")
    for name, share in recall.items():
        table.add_row(RECALL[name], f"{share:.2%}")
    return table


def _rates(rates: dict[str, list[Any]]) -> Table:
    table = _table("from", "pairs", "near-duplicates", "share", "")
    for low, number, copies in zip(rates["edges"], rates["pairs"], rates["near_duplicates"], strict=False):
        if number:
            share = copies / number
            table.add_row(f"{low:.3f}", f"{number:,}", f"{copies:,}", f"{share:.1%}", _bar(share, 1.0))
    return table


def _hubs(hubs: list[dict[str, Any]]) -> Table:
    table = _table("targeted", "accepted", "document", "begins", words=2)
    for hub in hubs:
        begins = Text(printable(hub["words"]), no_wrap=True, overflow="ellipsis")
        table.add_row(f"{hub['targeted']:,}", f"{hub['accepted']:,}", Text(printable(hub["id"])), begins)
    return table


def _sources(sources: dict[str, Any]) -> Table:
    names = [_short(name) for name in source_names(sources)]
    table = _table("", *(f"{place}" for place in range(1, len(names) + 1)))
    for place, (name, row) in enumerate(zip(names, sources["pairs"], strict=True), 1):
        table.add_row(Text(f"{place} {name}"), *(compact(number) if number else "·" for number in row))
    return table


def source_names(sources: dict[str, Any]) -> list[str]:
    """Names of the rows of the table of sources."""
    return sources["names"] + ([f"{sources['others']:,} others"] if sources["others"] else [])


def _screened(screened: dict[str, Any]) -> Table:
    table = _table("", "documents")
    for name, number in [*screened["languages"].items()][:8]:
        table.add_row(Text(f"language {printable(name) or 'unknown'}"), f"{number:,}")
    for name, number in screened["contaminated"].items():
        table.add_row(Text(f"with an item of {printable(name)}"), f"{number:,}")
    return table


def _pair(row: dict[str, Any], width: int, marks: bool) -> RenderableType:
    texts = [(row[f"{name}_id"], row[f"{name}_text"]) for name in ("d1", "d2")]
    return Group(side_by_side(texts, width, marks), Text(facts(row), "bright_black"))


def side_by_side(texts: list[tuple[str, str]], width: int, marks: bool, limit: int = SHOWN) -> RenderableType:
    """Two documents, (title, text) each, next to each other where they fit, with the shingles marked that both have.

    Args:
      width: columns of the terminal.
      marks: whether shared runs stand in [[ ]], for want of colours.
      limit: characters of each that are shown.
    """
    side = (width - 1) // 2 if width >= SIDE_BY_SIDE else width
    (first, one), (second, other) = texts
    panels = [panel(first, one, other, side, marks, limit), panel(second, other, one, side, marks, limit)]
    return Columns(panels, padding=(0, 1)) if side < width else Group(*panels)


def panel(title: str, text: str, other: str, width: int, marks: bool, limit: int = SHOWN) -> Panel:
    """One document, with the shingles marked that another text has too."""
    content = Text()
    for piece, kind in excerpt(text, other, limit):
        piece = " ".join(printable(piece).split(" ")).replace("\n\n", "\n")
        if kind == "run" and marks:
            content.append(f"[[{piece}]]")
        else:
            content.append(piece, {"run": "black on yellow", "gap": "bright_black"}.get(kind, ""))
    return Panel(content, title=Text(printable(title)), title_align="left", width=width)


def facts(row: dict[str, Any]) -> str:
    """The evidence of one pair in a line."""
    parts = [f"similarity {row['similarity']:.3f}, neighbour {row['rank'] + 1}{', mutual' if row['mutual'] else ''}"]
    if row["containment"] > 0:
        counted = f"{row['containment']:.1%} of the smaller, Jaccard {row['jaccard']:.1%}"
        parts.append(f"{row['shared'] + row['boilerplate']:,} shingles shared: {counted}")
    else:
        parts.append(f"{'no other' if row['boilerplate'] else 'no'} shingle shared")
    if row["boilerplate"]:
        parts.append(
            f"{row['boilerplate']:,} of them boilerplate"
            if row["containment"] > 0
            else f"{row['boilerplate']:,} of boilerplate"
        )
    parts.append(f"{row['tokens']:,} tokens, lengths {row['length_ratio']:.0%}")
    parts.append(
        f"{'one source' if row['same_source'] else 'two sources'}, "
        f"{'one language' if row['same_language'] else 'two languages'}"
    )
    if row["target_rank"] > 0:
        nearer = "one document is" if row["target_rank"] == 1 else f"{row['target_rank']:,} documents are"
        parts.append(f"{nearer} nearer to the second")
    return "; ".join(parts)


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _table(*names: str, words: int = 0) -> Table:
    """A table whose first column and last `words` are text and whose others are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bright_black", padding=(0, 2, 0, 0))
    for place, name in enumerate(names):
        text = (place == 0 and not words) or place >= len(names) - words or not name
        justify: Literal["left", "right"] = "left" if text else "right"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", min_width=len(name))
    return table


def _bar(value: float, most: float, style: str = "green") -> Text:
    """A bar of eighths of a character."""
    eighths = round(8 * BAR * value / most) if most else 0
    return Text("█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else ""), style)
