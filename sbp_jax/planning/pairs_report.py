"""A plan for finding pairs as a text for people."""

from typing import Any

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def text(plan: dict[str, Any]) -> str:
    """The plan as a table for the terminal."""
    corpus, machines, embedding = plan["corpus"], plan["machines"], plan["embedding"]
    chips = bool(machines["chips"])
    memory = f", {size(machines['host_memory'])} of memory each" if machines["host_memory"] and chips else ""
    where = f"{machines['name']}: {machines['chips']:,} chips, {machines['hosts']:,} hosts{memory}" if chips else ""
    lines = [
        ("documents", f"{corpus['documents']:,}, {corpus['width']:,} dimensions, {corpus['top_k']:,} neighbours each"),
        ("", f"{corpus['tokens']:,} tokens embedded and {corpus['words']:,} words each, on average"),
        ("machines", where or machines["name"]),
        ("backend", f"{plan['backend']}: {plan['reason']}"),
        ("", ""),
        ("", f"{'operations':>12}{'time':>12}{'chip-hours' if chips else 'host-hours':>14}"),
        (f"embed, {embedding['embedder']}", _cost(embedding, chips)),
        (f"search, {plan['backend']}", _cost(plan["searches"][plan["backend"]], chips)),
        ("", ""),
        ("searches", f"{'operations':>12}{'time':>12}{'a chip' if chips else '':>12}{'a host':>12}{'scratch':>12}"),
    ]
    for name, search in plan["searches"].items():
        device = size(search["device_bytes"]) if search["device_bytes"] else ""
        rest = f"{device:>12}{size(search['host_bytes']):>12}{size(search['scratch_bytes']):>12}"
        mark = " *" if name == plan["backend"] else ""
        lines.append((f"  {name}{mark}", f"{search['flops']:>12.2e}{time(search['seconds']):>12}{rest}"))
    lines += [("", ""), ("written", "")]
    lines += [(f"  {name}", f"{size(number):>12}") for name, number in plan["written"].items()]
    lines += [("  together", f"{size(sum(plan['written'].values())):>12}")]
    return "\n".join(f"{name:<30}{value}".rstrip() for name, value in lines)


def _cost(made: dict[str, Any], chips: bool) -> str:
    hours = made["chip_hours" if chips else "host_hours"]
    return f"{made['flops']:>12.2e}{time(made['seconds']):>12}{'' if hours is None else f'{hours:,.1f}':>14}"


def time(seconds: float | None) -> str:
    if seconds is None:
        return "on CPUs"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(size: float) -> str:
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:,.3g} {name}"
    return f"{size:.0f} B"
