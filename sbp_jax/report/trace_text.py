"""What is known of where documents come from, for a terminal."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sbp_jax.report.pair_text import panel, side_by_side
from sbp_jax.report.summary import printable
from sbp_jax.report.takedown import counted
from sbp_jax.text.shingles import WORDS

SHOWN = 900  # characters of a document
LISTED = 6  # entries of a list, and ids of a table's cell
WHOLE = 1 << 62


def show(told: dict[str, Any], console: Console, full: bool = False) -> None:
    """Prints what `trace` tells; shared shingles are marked, without colours by [[ ]]."""
    limit, marks = WHOLE if full else SHOWN, console.color_system is None
    if told["example"] is not None:
        console.print(Text(_example(told["example"], len(told["documents"])), "bold"))
    for document in told["documents"]:
        console.print()
        if document["kind"] == "real":
            _show_real(document, console, limit, marks)
        else:
            _show_synthetic(document, console, limit, marks)


def show_derived(told: dict[str, Any], console: Console, full: bool = False) -> None:
    """Prints what `derived` tells; lists are cut off unless `full`."""
    for document in told["documents"]:
        console.print(Text(f"\n{_title(document)}, {document['split'] or 'not split yet'}", "bold"))
        facts = _facts()
        for label, line in _lines(document, WHOLE if full else LISTED):
            facts.add_row(label, Text(printable(line)))
        console.print(facts)
    totals, number = Counter[str](), len(told["documents"])
    for document in told["documents"]:
        totals.update(counted(document))
    counts = [
        f"{number:,} {'document' if number == 1 else 'documents'}: {totals['accepted_pairs']:,} accepted pairs",
        f"in tuning {totals['tuned']:,} times",
        f"{totals['synthetic']:,} synthetic documents, {totals['accepted']:,} of them accepted",
    ]
    twice = " (one that read two of these counts twice)" if number > 1 else ""
    console.print(Text(f"\n{', '.join(counts)}{twice}", "bold"))
    if told["not_complete"]:
        console.print(Text(f"Not complete yet, and not in this: {', '.join(told['not_complete'])}; run `sbp run ...`"))


def _lines(document: dict[str, Any], most: int) -> Iterator[tuple[str, str]]:
    """What came from one document: the instance, and what it has of it."""
    for name, sides in document["pairs"].items():
        for side, found in sides.items():
            others = _listed([pair["id"] for pair in found["accepted"]], most)
            rejected = f"; rejected: {_tally(found['rejected'])}" if found["rejected"] else ""
            yield f"{name}, {side.replace('_', ' ')}", f"{len(found['accepted']):,} accepted{others}{rejected}"
    for name, parts in document["tuned"].items():
        uses = {"train": "tuning", "validation": "validation"}
        counts = [
            f"{uses[part]} reads it {count['read']:,} and writes it {count['written']:,} times"
            for part, count in parts.items()
        ]
        yield name, "; ".join(counts)
    for name, groups in document["synthetic"].items():
        for group, found in groups.items():
            if found:
                verdicts = f", {_tally(Counter(entry['verdict'] for entry in found))}" if group == "rejected" else ""
                quotes = sum(not entry["read"] for entry in found)
                unread = f"; {quotes:,} of them quote it without having read it" if quotes else ""
                listed = _listed([entry["id"] for entry in found], most)
                yield name, f"{len(found):,} {group.replace('_', ' ')}{verdicts}{listed}{unread}"
        if not any(groups.values()):
            yield name, "none"
    for run, streams in document["trained"].items():
        for rows_name, found in streams.items():
            told = f"{len({row for entry in found for row in entry['rows']}):,} rows of {rows_name}"
            if all("steps" in entry for entry in found):
                steps = sorted({step for entry in found for step, _ in entry["steps"]})
                noun = "step" if len(steps) == 1 else "steps"
                told += f", read at {len(steps):,} {noun}{_listed([str(step) for step in steps], most)}"
            yield run, told


def _example(example: dict[str, Any], documents: int) -> str:
    place = f"row {example['row']:,} of {example['rows']}"
    if example["run"] is not None:
        place = f"{example['run']}, step {example['step']:,}, row {example['place']:,} of the batch: {place}"
    position = "" if example["position"] is None else f", position {example['position']:,}"
    return f"{place}{position}: {documents:,} {'document' if documents == 1 else 'documents'}"


def _show_real(document: dict[str, Any], console: Console, limit: int, marks: bool) -> None:
    console.print(panel(_title(document), document["text"], "", console.width, marks, limit))
    facts = _facts()
    facts.add_row("split", document["split"] or "not split yet")
    _add_place(facts, document)
    facts.add_row("what came from it", Text(f"sbp trace ... --from {printable(document['id'])}"))
    console.print(facts)


def _show_synthetic(document: dict[str, Any], console: Console, limit: int, marks: bool) -> None:
    read = sorted(document["read"], key=lambda entry: not entry["seed"])
    nearest = document.get("nearest", {})
    title = f"{document['id']} of {document['instance']}, {document['verdict'] or 'not filtered yet'}"
    shown: set[int] = set()
    if read:
        texts = [(title, document["text"]), (f"its seed {_title(read[0])}", read[0]["text"])]
        console.print(side_by_side(texts, console.width, marks, limit))
        shown.add(read[0]["ordinal"])
    else:
        other = (nearest.get("by_words") or {"text": ""})["text"]
        console.print(panel(title, document["text"], other, console.width, marks, limit))
    others = [("it read too", entry) for entry in read[1:]]
    others += [
        (f"nearest {kind.replace('_', ' ')}", nearest[kind]) for kind in ("by_words", "by_meaning") if nearest.get(kind)
    ]
    for label, entry in others:
        if entry["ordinal"] not in shown:
            shown.add(entry["ordinal"])
            text = f"{label}: {_title(entry)}"
            console.print(panel(text, entry["text"], document["text"], console.width, marks, limit))
    console.print(_facts_of(document, read, nearest))


def _facts_of(document: dict[str, Any], read: list[dict[str, Any]], nearest: dict[str, Any]) -> Table:
    facts = _facts()
    rules = "" if document["rule_version"] is None else f"; rules {document['rule_version']}"
    scores = ", ".join(f"{name} {_number(value)}" for name, value in document["scores"].items() if value is not None)
    facts.add_row(
        "verdict",
        Text(printable(f"{document['verdict'] or 'not filtered yet'}{f': {scores}' if scores else ''}{rules}")),
    )
    end = f"{document['finish']} after {document['new_tokens']:,} tokens"
    if document["logprob_per_token"] is not None:
        end += f"; log-probability {document['logprob_per_token']:.3f} nats a token"
    facts.add_row("finish", end)
    settings = ", ".join(
        f"{name} {_number(value)}" for name, value in document["settings"].items() if value is not None
    )
    engine = f"; engine {document['engine']}" if document.get("engine") else ""
    facts.add_row("key", Text(f"{document['key']}; {settings}{engine}"))
    if not read:
        facts.add_row("seed", "none: nothing was read before it was written")
    for entry in read:
        similar = entry.get("similarity_to_text")
        told = _title(entry) + ("" if similar is None else f"; similarity to this text {similar:.3f}")
        if entry["seed"] and "similarity" in document:
            paired = document["similarity"]
            told += "; in no pair" if paired is None else f"; to its nearest partner {paired:.3f}"
        facts.add_row("seed" if entry["seed"] else "it read too", Text(told))
    _add_place(facts, document)
    ordinals = {entry["ordinal"] for entry in read}
    if nearest:
        facts.add_row("nearest by words", Text(_by_words(nearest["by_words"], ordinals)))
        facts.add_row("nearest by meaning", Text(_by_meaning(nearest, ordinals)))
    checkpoint = document["checkpoint"]
    facts.add_row("checkpoint", Text(_checkpoint(checkpoint)))
    if checkpoint.get("path"):
        facts.add_row("", Text(checkpoint["path"]))
    if "tuned_on" in checkpoint:
        number, base = checkpoint["tuned_on"]["pairs"], checkpoint["base"]
        pairs = f"{number:,} pairs of" if number is not None else "pairs that are gone, of"
        facts.add_row("tuned on", Text(f"{pairs} {checkpoint['tuned_on']['instance']}"))
        name = "the user's own" if base["instance"] is None else f"{base['instance']} {base.get('key', '')}"
        step = f", step {base['step']:,}" if "step" in base else ""
        facts.add_row("its base", Text(f"{name}{step}; {base['path'] or 'gone'}"))
    return facts


def _by_words(found: dict[str, Any] | None, read: set[int]) -> str:
    if found is None:
        return "no real document has a run of 5 of its words"
    none = "no document has a shingle of 13 of its words; " if not found["shared"][WORDS] else ""
    counts = [
        f"{number:,} of its {found['shingles'][length]:,} shingles of {length} words"
        for length, number in found["shared"].items()
    ]
    return f"{none}{_title(found)}{_also(found, read)}: has {' and '.join(counts)}"


def _by_meaning(nearest: dict[str, Any], read: set[int]) -> str:
    found = nearest["by_meaning"]
    if found is None:
        return f"not told: {nearest['by_meaning_reason']}"
    return f"{_title(found)}{_also(found, read)}: similarity {found['similarity']:.3f}"


def _also(found: dict[str, Any], read: set[int]) -> str:
    return ", which it read" if found["ordinal"] in read else ""


def _checkpoint(checkpoint: dict[str, Any]) -> str:
    told = f"{checkpoint['instance']} {checkpoint['key']}"
    if checkpoint.get("step") is not None:
        told += f", step {checkpoint['step']:,}" + (f" of {checkpoint['steps']:,}" if "steps" in checkpoint else "")
    return told + (f"; {checkpoint['note']}" if "note" in checkpoint else "")


def _add_place(facts: Table, document: dict[str, Any]) -> None:
    if "positions" in document:
        start, stop = document["positions"]
        role = "" if document["bears_loss"] else ", read without loss"
        facts.add_row("in the row", f"positions {start:,} to {stop - 1:,}{role}")


def _title(document: dict[str, Any]) -> str:
    return printable(document["id"] + (f" ({document['source']})" if document.get("source") else ""))


def _facts() -> Table:
    table: Table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _listed(names: list[str], most: int) -> str:
    """Behind a count: some of what was counted, in brackets."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f" ({', '.join(names[:most])}{more})" if names else ""


def _tally(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
