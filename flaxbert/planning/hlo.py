"""Reads a compiled program's text: how often instructions run, their costs and exchanges.

The text is the optimised HLO that `compiled.as_text()` returns. Note: a loop's body is written
once, so it is counted with its number of trips, which not every compiler writes; one exchange may
be part of many fusions that overlap it; and exchanges between slices, over their network, appear as
send and receive of a host.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_PATH = re.compile(r'op_name="([^"]*)"')
_BODY = re.compile(r"\b(?:body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Not channel_id, which layers that were traced once share.
_CHAIN = re.compile(r'chain_id="(\d+)')
_NETWORK = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CONSTRAINTS = re.compile(r"operand_layout_constraints=\{(.*?)\}\}")
_ARRAY = re.compile(r"(pred|[a-z]+[0-9]+[a-z0-9]*)\[([\d,]*)\]")
_LAYOUT = re.compile(_ARRAY.pattern + r"(?:\{([^}]*)\})?")
_ON_CHIP = re.compile(r"S\([1-9]")
_OPERANDS = re.compile(r"%([\w.\-]+)")

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_OF_AXES = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CONTAINERS = ("while", "call", "conditional")

# The TPU compiler's name for an all-reduce of which each device keeps a part.
_SCATTERED = "all-reduce-scatter"

Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of the program."""

    name: str
    opcode: str
    size: int  # bytes of its result
    hbm: int  # of them in the device's main memory, not on the chip
    operands: tuple[str, ...]
    cycles: int  # the compiler's estimate; 0 = none
    path: str  # its origin in the source, as named by JAX
    trips: int  # how often its bodies run; 0 = not written
    bodies: tuple[str, ...]  # computations that it runs
    calls: str  # the computation that was fused into it
    target: str  # the kernel, of a custom call
    shapes: tuple[tuple[int, ...], ...]  # of a custom call's results and operands
    chain: tuple[str, ...]  # identifies the parts of one exchange
    groups: Groups | None  # of devices that exchange; () = all of them, None = unknown
    between_slices: str  # the exchange over their network that it receives: all-gather, ...

    @property
    def kind(self) -> str:
        """The opcode without "-start"."""
        return self.opcode.removesuffix("-start")

    @property
    def exchanges(self) -> bool:
        """Whether it is only a fused exchange."""
        return _SCATTERED in self.name + self.calls or self.name.startswith("async-collective")


def walk(text: str, trips: int = 1) -> Iterator[tuple[Instruction, int]]:
    """Yields the instructions that run, and how often each runs in one call of the program.

    Of fused instructions only exchanges between devices are included, each once. `trips` is used
    for loops whose number of trips is not written.
    """
    computations, entry = parse(text)
    seen: set[tuple[str, ...]] = set()

    def of(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in computations.get(name, ()):
            if instruction.opcode in _CONTAINERS:
                inside = times * (instruction.trips or trips)
                for body in instruction.bodies:
                    yield from of(body, inside)
                continue
            yield instruction, times
            yield from ((found, times) for found in exchanges_in(instruction))

    def exchanges_in(outer: Instruction) -> Iterator[Instruction]:
        for inner in computations.get(outer.calls, ()):
            if inner.kind not in COLLECTIVES:
                yield from exchanges_in(inner)
                continue
            if inner.chain:
                if (inner.kind, *inner.chain) in seen:
                    continue
                seen.add((inner.kind, *inner.chain))
            if _SCATTERED in outer.name + outer.calls:
                inner = dataclasses.replace(inner, opcode="reduce-scatter", size=outer.size)
            # Its memory traffic is counted for the outer one.
            yield dataclasses.replace(inner, hbm=0, operands=())

    yield from of(entry, 1)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns {computation: instructions} and the name of the entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            current = opened["name"]
            computations[current] = []
            entry = current if opened["entry"] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_instruction(found["name"], found["rest"]))
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
    end = _end_of_shape(rest)
    opcode = _first(_OPCODE.match(rest[end:]))
    cycles, trips = _first(_CYCLES.search(rest)), _first(_TRIPS.search(rest))
    arrays = _ARRAY.findall(rest[:end])
    network = _first(_NETWORK.search(rest)) if opcode == "recv" else ""
    if network or (opcode.endswith("-start") and opcode != "all-reduce-start"):
        # Operands, results, and perhaps counters.
        arrays = [array for array in arrays if array != ("u32", "")]
        arrays = arrays[len(arrays) // 2 :]
    branches = re.findall(r"[\w.\-]+", _first(_BRANCHES.search(rest)))
    operands = _ARRAY.findall(_first(_CONSTRAINTS.search(rest)))
    return Instruction(
        name=name,
        opcode=opcode,
        size=sum(map(_bytes, arrays)),
        hbm=sum(
            _bytes((kind, dimensions))
            for kind, dimensions, layout in _LAYOUT.findall(rest[:end])
            if not _ON_CHIP.search(layout)
        ),
        operands=tuple(_OPERANDS.findall(_inside(rest[end:]))),
        cycles=int(cycles or 0),
        path=_first(_PATH.search(rest)),
        trips=int(trips or 0) if opcode == "while" else 1,
        bodies=(*_BODY.findall(rest), *branches),
        calls=_first(_CALLS.search(rest)),
        target=_first(_TARGET.search(rest)),
        shapes=tuple(_numbers(shape) for _, shape in (*arrays, *operands)) if operands else (),
        chain=tuple(_CHAIN.findall(rest)),
        groups=_groups(rest),
        between_slices=network.lower().replace("_", "-"),
    )


def _first(found: re.Match[str] | None) -> str:
    return found[1] if found else ""


def _end_of_shape(rest: str) -> int:
    """Returns the end of the result's shape; a tuple's shape contains spaces and brackets."""
    if not rest.startswith("("):
        return rest.find(" ")
    depth = 0
    for place, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return place + 1
    return len(rest)


def _inside(text: str) -> str:
    """Returns the text up to the end of the first brackets."""
    start = text.find("(")
    return text[start : start + _end_of_shape(text[start:])] if start >= 0 else ""


def _bytes(array: tuple[str, str]) -> int:
    kind, dimensions = array
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    return -(-math.prod(_numbers(dimensions)) * bits // 8)


def _groups(rest: str) -> Groups | None:
    """Reads groups of devices in any of their forms.

    {{0,1},{2,3}} lists them. [2,2]<=[4] is 0, 1, 2, ... in that shape, [2,2]<=[2,2]T(1,0) with
    transposed axes. mesh['a'=2,'b'=2] {'b'} are the devices along b of such a mesh, perhaps in
    another order, device_ids=([2,2]T(1,0)). {} is all devices.
    """
    if listed := _LISTED.search(rest):
        return tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    if counted := _COUNTED.search(rest):
        ids = _iota(counted[2], counted[3])
        return tuple(map(tuple, ids.reshape(_numbers(counted[1])).tolist()))
    if of_axes := _OF_AXES.search(rest):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", of_axes[1]))
        along = re.findall(r"'(\w+)'", of_axes[4])
        if ":" in of_axes[4] or not set(along) <= set(axes):
            return None  # a part of an axis
        sizes = [int(size) for size in axes.values()]
        ids = _iota(of_axes[2] or str(math.prod(sizes)), of_axes[3]).reshape(sizes)
        places = {name: place for place, name in enumerate(axes)}
        others = [places[name] for name in axes if name not in along]
        inside = [places[name] for name in axes if name in along]
        each = math.prod(sizes[place] for place in inside)
        return tuple(map(tuple, ids.transpose(others + inside).reshape(-1, each).tolist()))
    return () if "replica_groups={}" in rest else None


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Returns 0, 1, 2, ... in a shape, with its axes transposed to `order`."""
    dimensions = _numbers(shape)
    ids = np.arange(math.prod(dimensions)).reshape(dimensions)
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
