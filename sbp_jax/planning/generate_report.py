"""A plan for generating as a text for people: every number with the arithmetic that it comes from."""

from typing import Any

from sbp_jax.planning.topology import GIB


def text(plan: dict[str, Any]) -> str:
    """The plan as a table for the terminal."""
    topology, documents, chosen = plan["topology"], plan["documents"], plan["chosen"]
    bandwidth, flops = f"{topology['bandwidth'] / 1e9:,.0f} GB/s", f"{topology['flops'] / 1e12:g} TFLOP/s"
    model = plan["model"]
    lines = [
        ("experiment", f"{plan['experiment']}: {model['parameters']:,} parameters, {model['dtype']}"),
        (
            "topology",
            f"{topology['name']}: {topology['chips']} chips, {topology['devices']} devices of"
            f" {_gib(topology['memory'])}, {bandwidth} and {flops}",
        ),
        (
            "documents",
            f"prompts of {documents['prompt']:,} tokens and {documents['new']:,} new ones on average, context"
            f" {plan['context']:,}",
        ),
        ("", ""),
    ]
    if chosen:
        lines += [*_memory(plan, chosen), ("", ""), *_speed(chosen), ("", ""), *_cost(chosen, documents), ("", "")]
    lines += [("compiled", _attempt(tried, topology)) for tried in plan["tried"]]
    advice = " ".join(f"--set {assignment}" for assignment in chosen["set"]) if chosen else f"nothing fits: {REMEDY}"
    lines += [("", ""), ("use" if chosen else "", advice)]
    return "\n".join(f"{name:<15}{value}".rstrip() for name, value in lines)


REMEDY = "cut the model over more devices with --tensor, take chips with more memory, or ask for fewer --slots"


def _memory(plan: dict[str, Any], chosen: dict[str, Any]) -> list[tuple[str, str]]:
    memory, devices, speed = plan["topology"]["memory"], chosen["devices"], chosen["speed"]
    over = f"{devices} devices ({_mesh(chosen)})" if devices > 1 else "1 device"
    pages = chosen["cache_tokens"] // plan["page"]
    lines = [
        ("a copy", f"of the model takes {over}: {chosen['copies']} copies, which share nothing"),
        ("slots", f"{chosen['slots']:,}, which generate {plan['decode_steps']} tokens a call"),
        (
            "in flight",
            f"{chosen['tokens_in_flight']:,.0f} tokens of a copy: {chosen['slots']:,} slots x {speed['held']:,.0f}, a"
            " prompt and half of what is new",
        ),
        ("", f"{pages:,} pages of {plan['page']} hold {chosen['cache_tokens']:,}"),
        ("", ""),
        ("memory", "of one device, while the larger program runs"),
        ("  weights", _gib(chosen["weights"])),
        ("  cache", _gib(chosen["cache"])),
        ("  temporaries", _gib(chosen["temporaries"])),
        ("  code", f"{_gib(chosen['code'])}, both programs"),
        ("  peak", f"{_gib(chosen['peak'])}, {chosen['peak'] / memory:.0%} of {_gib(memory)}"),
    ]
    for name, often in (("copied_a_step", "in each step"), ("copied_a_call", "in each call")):
        if chosen[name]:
            share = chosen[name] / chosen["cache"]
            lines.append(("  copied", f"{_gib(chosen[name])} {often}: the program copies the cache {share:.2g} times"))
    sent = sum(traffic["bytes"] for traffic in chosen["traffic"].values())
    if sent:
        kinds = ", ".join(f"{kind} {traffic['count']:,}" for kind, traffic in chosen["traffic"].items())
        network = chosen["network_seconds_at_peak"]
        lines.append(
            ("sent a step", f"{sent / 1e6:,.1f} MB, {network * 1e3:.2f} ms at full interconnect speed: {kinds}")
        )
    return lines


def _speed(chosen: dict[str, Any]) -> list[tuple[str, str]]:
    speed, slots = chosen["speed"], chosen["slots"]
    chips = f" / {chosen['devices']} devices" if chosen["devices"] > 1 else ""
    bound, products = speed["tokens_a_second_a_chip"], speed["products_tokens_a_second_a_chip"]
    return [
        ("bandwidth", "what a step reads, of one device"),
        ("  weights", f"{_gb(speed['weight_bytes'])}, all that is multiplied"),
        (
            "  cache",
            f"{_gb(speed['cache_bytes'])} = {slots:,} slots x {speed['held']:,.0f} tokens x"
            f" {speed['position_bytes']:,.0f} bytes of keys and values",
        ),
        (
            "  a step",
            f"{speed['step_seconds'] * 1e3:,.2f} ms = ({speed['weight_bytes'] / 1e9:,.2f} +"
            f" {speed['cache_bytes'] / 1e9:,.2f}) GB / {speed['bandwidth'] / 1e9:,.0f} GB/s",
        ),
        ("  bound", f"{bound:,.0f} tokens/s a chip = {slots:,} / {speed['step_seconds'] * 1e3:,.2f} ms{chips}"),
        (
            "products",
            f"{speed['products_seconds'] * 1e3:,.2f} ms = {slots:,} x {speed['flops_a_token'] / 1e9:,.2f} GFLOPs"
            f" / {speed['flops'] / 1e12:g} TFLOP/s{chips}: {products:,.0f} tokens/s a chip",
        ),
    ]


def _cost(chosen: dict[str, Any], documents: dict[str, Any]) -> list[tuple[str, str]]:
    cost, speed = chosen["cost"], chosen["speed"]
    rate = speed["bound_tokens_a_second_a_chip"]
    share, reading = cost["utilisation"], cost["prompt_utilisation"]
    return [
        (f"{_short(cost['tokens'])} tokens", "new ones, in chip-hours"),
        (
            "  decoding",
            f"{cost['decoding_chip_hours_at_bound']:,.0f} at the bound = {_short(cost['tokens'])} / {rate:,.0f} /"
            f" 3,600; {cost['decoding_chip_hours']:,.0f} at {share:.0%} of it ({rate * share:,.0f} tokens/s a chip)",
        ),
        (
            "  prompts",
            f"{_short(cost['prompt_tokens'])} tokens = {_short(cost['tokens'])} x {documents['prompt']:,} /"
            f" {documents['new']:,}, {cost['prompt_flops_a_token'] / 1e9:,.2f} GFLOPs each",
        ),
        (
            "",
            f"{cost['prompts_chip_hours_at_peak']:,.0f} at the peak of products; {cost['prompts_chip_hours']:,.0f} at"
            f" {reading:.0%} of it",
        ),
        ("  together", f"{cost['chip_hours']:,.0f} at {share:.0%} and {reading:.0%}"),
    ]


def _attempt(tried: dict[str, Any], topology: dict[str, Any]) -> str:
    needed = f"{'' if tried['peak'] else 'at least '}{_gib(tried['needed'])}"
    verdict = "fits" if tried["fits"] else f"does not fit {_gib(topology['memory'])}"
    return f"{_mesh(tried)}, {tried['slots']:,} slots: {needed}, {verdict} ({tried['seconds']:.0f} s)"


def _mesh(tried: dict[str, Any]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in tried["mesh"].items() if axis != "data")


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.2f} MiB"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:,.4g}{unit}"
    return f"{number:,.0f}"
