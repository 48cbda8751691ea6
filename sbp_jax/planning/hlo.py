"""What a compiled program sends over the network, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, and the layers are a loop; here every collective counts as
often as it runs.
"""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
ON_CHIP = "S(1)"  # of a TPU's memory spaces
COPIES = ("copy", "copy-start", "transpose")
ITEM_BITS = {"pred": 8, "token": 0, "bf16": 16}  # the others end in their number of bits, such as s32 or f8e4m3's 8

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """One line of HLO: `name = result opcode(operands), attributes`."""

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # what stands between the parentheses, such as the value of a constant
    attributes: str

    @property
    def calls(self) -> tuple[str, ...]:
        """Computations run once whenever this is; the body of a loop is not among them."""
        return tuple(name.strip("{}% ") for found in _CALLED.findall(self.attributes) for name in found.split(","))

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found and found[1]


@dataclass
class Module:
    """The computations of a program by name, in the order of their instructions."""

    entry: str = ""
    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    instructions: dict[str, Instruction] = field(default_factory=dict)


@dataclass
class Traffic:
    """Collectives of one kind in one step: how often they run, and the bytes that each device sends in them."""

    count: int = 0
    bytes: float = 0.0


def collectives(text: str) -> tuple[dict[str, Traffic], int]:
    """Traffic of one step by kind, from a program after partitioning.

    Bytes are those of the best ring: a device of a group of n sends (n - 1) / n of the whole array in an all-gather,
    a reduce-scatter or an all-to-all, and twice as much in an all-reduce. Branches of a conditional all count.

    Returns:
      The traffic, and the number of loops whose length could not be read; what is inside of those counts once.
    """
    module = parse(text)
    traffic: dict[str, Traffic] = {}
    unknown = 0
    regions = [(module.entry, 1)]
    while regions:
        region, times = regions.pop()
        channels: set[tuple[str, str]] = set()  # a collective that is fused in parts shows up in each of them
        for computation, instruction in _reachable(module, region):
            if instruction.opcode == "while":
                trips = trip_count(module, instruction)
                unknown += trips is None
                body = instruction.attribute("body")
                assert body is not None
                regions.append((body, times * (1 if trips is None else trips)))
                continue
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = instruction.attribute("channel_id")
            if channel is not None and (kind, channel) in channels:
                continue
            channels.add((kind, channel or instruction.name))
            if computation.startswith("all-reduce-scatter"):  # a TPU's way to write a reduce-scatter
                kind = "reduce-scatter"
            members = group_size(instruction.attributes)
            if members == 1:
                continue
            entry = traffic.setdefault(kind, Traffic())
            entry.count += times
            entry.bytes += times * _sent(module, kind, instruction, members)
    return dict(sorted(traffic.items())), unknown


def copies(text: str, shapes: Collection[tuple[int, ...]]) -> tuple[float, float]:
    """Bytes of the copies that a program makes of arrays of such shapes: outside of its loops, and once around them.

    What goes to the chip's own memory, ahead of its use, is no copy.
    """
    module = parse(text)
    made = [0.0, 0.0]
    regions = [(module.entry, 0)]
    while regions:
        region, inside = regions.pop()
        for _, instruction in _reachable(module, region):
            if instruction.opcode == "while":
                regions.append((instruction.attribute("body") or "", 1))
            elif instruction.opcode in COPIES:
                copied = instruction.result.removeprefix("(").partition("}")[0]  # the first of a copy-start's results
                _, dimensions = _ARRAY.findall(copied)[0]
                if tuple(map(int, filter(None, dimensions.split(",")))) in shapes and ON_CHIP not in copied:
                    made[inside] += array_bytes(copied)
    return made[0], made[1]


def parse(text: str) -> Module:
    module = Module()
    current: list[Instruction] = []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = module.computations.setdefault(header[2], [])
            module.entry = header[2] if header[1] else module.entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            instruction = _instruction(found[2], found[3])
            current.append(instruction)
            module.instructions[instruction.name] = instruction
    return module


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a loop runs: as the compiler noted it, or from its condition `counter < constant`; None: not known."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted[1])
    condition = [instruction for _, instruction in _reachable(module, loop.attribute("condition") or "")]
    limits = [int(i.arguments) for i in condition if i.opcode == "constant" and re.fullmatch(r"\d+", i.arguments)]
    compares = [i for i in condition if i.opcode == "compare"]
    counters = [i for i in condition if i.opcode == "get-tuple-element" and re.match(r"[su]\d+\[\]", i.result)]
    if len(limits) != 1 or len(compares) != 1 or len(counters) != 1 or "direction=LT" not in compares[0].attributes:
        return None
    return limits[0] - _start(module, loop, int(counters[0].attribute("index") or 0))


def _start(module: Module, loop: Instruction, index: int) -> int:
    """The counter's first value, 0 unless the program says otherwise: scans count from there."""
    state = module.instructions.get(loop.operands[0])
    if state is None or state.opcode != "tuple":
        return 0
    value = module.instructions.get(state.operands[index])
    while value is not None and value.opcode in ("copy", "bitcast", "convert"):
        value = module.instructions.get(value.operands[0])
    return int(value.arguments) if value is not None and value.opcode == "constant" else 0


def group_size(attributes: str) -> int:
    """Devices that take part in a collective together, from any of the ways to write `replica_groups`; 0: not known."""
    listed = re.search(r"replica_groups=\{\{([0-9,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if counted:
        return int(counted[1])
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if meshed:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", meshed[2])  # an axis, or a part of one: 'x':(before)size
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return 0


def array_bytes(result: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, written as HLO writes types."""
    total = 0
    for dtype, dimensions in _ARRAY.findall(result):
        digits = re.search(r"\d+", dtype)
        bits = ITEM_BITS.get(dtype, int(digits[0]) if digits else 0)
        total += bits * math.prod(int(size) for size in dimensions.split(",") if size) // 8
    return total


def _sent(module: Module, kind: str, instruction: Instruction, members: int) -> float:
    given = sum(array_bytes(module.instructions[name].result) for name in instruction.operands)
    result = array_bytes(instruction.result)
    if instruction.opcode.endswith("-start"):  # its result holds the operands as well
        result -= given
    if kind == "collective-permute":
        return result
    share = (members - 1) / members if members else 1.0
    return max(given, result) * share * (2 if kind == "all-reduce" else 1)


def _reachable(module: Module, region: str) -> Iterator[tuple[str, Instruction]]:
    """The instructions of a computation and of what it calls, loops not entered; each with its computation's name."""
    for instruction in module.computations.get(region, ()):
        yield region, instruction
        for called in instruction.calls:
            yield from _reachable(module, called)


def _instruction(name: str, definition: str) -> Instruction:
    result, rest = _split_type(re.sub(r"/\*.*?\*/", "", definition))
    opcode, _, rest = rest.partition("(")
    inside = _balanced(rest, 1)
    arguments, attributes = rest[: inside - 1], rest[inside:]
    return Instruction(name, result, opcode.strip(), tuple(_NAME.findall(arguments)), arguments, attributes)


def _split_type(text: str) -> tuple[str, str]:
    """The type at the beginning of a definition, and what follows it."""
    end = _balanced(text[1:], 1) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _balanced(text: str, depth: int) -> int:
    """Position after the parenthesis that closes `depth` open ones."""
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position + 1
    return len(text)
