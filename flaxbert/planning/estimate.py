"""Time, memory, FLOPs and exchanges of a compiled program on each device, from the compiler.

Note: the time is the sum of the cycles that the TPU's compiler estimates for each fusion. It has no
estimate for exchanges between chips, for asynchronous copies between memories, nor for kernels:
ours are counted in kernel_cycles.py, others are listed. Other compilers estimate no cycles: then
there is no time.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.loop import memory
from flaxbert.methods import params_of
from flaxbert.planning import hlo
from flaxbert.planning.chips import Chip
from flaxbert.planning.kernel_cycles import Counted, Kernel, KernelCycles, kernel_of

# Names of `jax.named_scope` in model/ and loop/step.py.
_PARTS = re.compile(r"\b(embeddings|attention|feed_forward|head|gradient_norm|optimizer)\b")
_OTHER = "other"

# Custom calls that compute nothing.
_FREE = ("ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked")
_COPIES = ("copy-start", "slice-start")
_NO_TRAFFIC = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Exchanges of one kind along the same axes of the mesh, together."""

    kind: str  # all-reduce, all-gather, ...
    axes: tuple[str, ...]  # along which devices exchange; () = unknown
    count: int
    bytes: int  # of the results on each device
    slices: int  # over the network of so many slices; 1 = within each slice, over links
    received: int  # bytes that a device gets from others, at least; 0 = unknown


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device while a program runs."""

    needed: int
    limit: int  # what programs may take; 0 = unknown
    parameters: int
    moments: int
    temporaries: int  # activations, gradients and all else
    code: int

    @property
    def margin(self) -> int:
        return self.limit - self.needed


@dataclasses.dataclass(frozen=True)
class Program:
    """One call of a program on each device."""

    flops: float
    bytes_accessed: float  # as counted by XLA, including on-chip memory; 0 = unknown
    main_memory: int  # bytes to and from HBM, at most; 0 = unknown
    cycles: int  # the compiler's estimate; 0 = none
    parts: dict[str, int]  # {part of the model: cycles}
    exchanges: tuple[Exchange, ...]
    copied: int  # bytes of asynchronous copies between memories, without cycles
    kernels: tuple[Counted, ...]  # ours; also in the parts' cycles, flops and bytes
    without_cycles: dict[str, int]  # {kernel: calls}; of programs that have cycles
    memory: Memory

    def seconds(self, chip: Chip | None) -> float:
        """Returns the compiler's estimate; 0 if it has none."""
        return self.cycles / chip.clock if chip else 0.0

    def exchange_seconds(self, chip: Chip, links: int) -> float:
        """Returns the least time of exchanges: all of a chip's links and its network in use."""
        within = sum(each.received for each in self.exchanges if each.slices == 1)
        between = sum(each.received for each in self.exchanges if each.slices > 1)
        return max(within / (links * chip.link) if links else 0.0, between / chip.network)


def describe(
    compiled: Any,
    mesh: Mesh,
    state: Any,
    limit: int,
    accumulate: int = 1,
    kernel_cycles: KernelCycles | None = None,
) -> Program:
    """Reads the costs of a compiled program.

    Args:
      compiled: as `jit(...).lower(...).compile()` returns it.
      mesh: what it was compiled for.
      state: abstract or real parameters, and moments if they are in memory meanwhile.
      limit: bytes that programs may use on a device; 0 = unknown.
      accumulate: micro-batches. XLA counts the loop over them once: FLOPs are multiplied, since
        nearly all are in it, and bytes are unknown.
      kernel_cycles: counts those of our kernels; None = they are listed as without cycles.
    """
    cost = compiled.cost_analysis() or {}
    parts: collections.Counter[str] = collections.Counter()
    exchanges: dict[tuple[str, tuple[str, ...], int, int], list[int]] = {}
    without: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[Kernel] = collections.Counter()
    places: collections.Counter[tuple[Kernel, str]] = collections.Counter()
    copied = main_memory = 0
    hbm: dict[str, int] = {}  # bytes of each result there
    for instruction, times in hlo.walk(compiled.as_text(), trips=accumulate):
        hbm[instruction.name] = instruction.hbm
        main_memory += times * _traffic(instruction, hbm)
        if instruction.between_slices or instruction.kind in hlo.COLLECTIVES:
            key = _group(instruction, mesh)
            found = exchanges.setdefault(key, [0, 0])
            found[0] += times
            found[1] += times * instruction.size
        elif instruction.cycles:
            parts[_part(instruction.path)] += times * instruction.cycles
        elif instruction.opcode in _COPIES:
            copied += times * instruction.size
        elif kernel_cycles and (kernel := kernel_of(instruction)):
            calls[kernel] += times
            places[kernel, _part(instruction.path)] += times
        elif _computes(instruction):
            without[instruction.target or re.sub(r"[.\d]+$", "", instruction.name)] += times
    kernels = kernel_cycles.count(calls) if kernel_cycles else ()
    cycles = {counted.kernel: counted.cycles for counted in kernels}
    for (kernel, part), times in places.items():
        parts[part] += times * cycles[kernel]
    return Program(
        flops=float(cost.get("flops", 0.0)) * accumulate,
        bytes_accessed=float(cost.get("bytes accessed", 0.0)) if accumulate == 1 else 0.0,
        main_memory=main_memory if parts else 0,
        cycles=sum(parts.values()),
        parts=dict(parts.most_common()),
        exchanges=tuple(
            Exchange(kind, axes, count, size, slices, _received(kind, members, size))
            for (kind, axes, members, slices), (count, size) in sorted(exchanges.items())
        ),
        copied=copied,
        kernels=kernels,
        without_cycles=dict(without) if parts else {},
        memory=memory_in(compiled, state, limit),
    )


def axes_of(groups: hlo.Groups | None, mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes of the mesh along which the members of a group differ."""
    if groups is None:
        return ()
    if not groups:
        return tuple(axis for axis, size in mesh.shape.items() if size > 1)
    places = np.stack(np.unravel_index(np.array(groups), mesh.devices.shape), axis=-1)
    differing = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(axis for axis, differs in zip(mesh.axis_names, differing, strict=True) if differs)


def _group(instruction: hlo.Instruction, mesh: Mesh) -> tuple[str, tuple[str, ...], int, int]:
    """Returns kind, axes, members of a group (1 = unknown), and the number of slices between."""
    if instruction.between_slices:
        places = np.vectorize(lambda device: device.slice_index)(mesh.devices)
        slices = len(np.unique(places))
        axes = tuple(
            axis
            for number, axis in enumerate(mesh.axis_names)
            if (places != places.take([0], axis=number)).any()
        )
        return instruction.between_slices, axes, slices, slices
    groups = instruction.groups
    members = 1 if groups is None else max(map(len, groups), default=mesh.devices.size)
    return instruction.kind, axes_of(groups, mesh), members, 1


def _received(kind: str, members: int, size: int) -> int:
    """Returns the bytes to receive from others, for results of that size on each member."""
    share = (members - 1) / members
    times = {
        "all-reduce": 2 * share,
        "reduce-scatter": members - 1,
        "collective-permute": min(members - 1, 1),
    }
    return round(size * times.get(kind, share))


def _traffic(instruction: hlo.Instruction, hbm: dict[str, int]) -> int:
    """Returns the bytes read from and written to HBM, counting whole operands.

    Copies are counted once: their other side is on the chip.
    """
    if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode in _COPIES:
        return instruction.size
    if instruction.target in _FREE:
        return 0
    if instruction.opcode.endswith("-start"):  # its result includes the operands
        return instruction.hbm
    return instruction.hbm + sum(hbm.get(operand, 0) for operand in instruction.operands)


def _computes(instruction: hlo.Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return instruction.target not in _FREE
    if instruction.exchanges:
        return False
    return instruction.opcode in ("fusion", "sort", "convolution", "dot", "scatter", "gather")


def _part(path: str) -> str:
    found = _PARTS.search(path)
    if not found:
        return _OTHER
    # JAX names the operations of a backward pass transpose(...).
    return found[1] + (" backward" if "transpose(" in path else "")


def memory_in(compiled: Any, state: Any, limit: int) -> Memory:
    """Returns the memory of each device that a program needs, with a state that stays there."""
    found = compiled.memory_analysis()
    parameters = bytes_of(params_of(state))
    moments = bytes_of(state.get("optimizer", {}))
    # Moments stay in memory during an evaluation, which does not use them.
    beside = max(0, parameters + moments - found.argument_size_in_bytes)
    results = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    return Memory(
        needed=memory.needed_by(compiled) + beside,
        limit=limit,
        parameters=parameters,
        moments=moments,
        temporaries=found.temp_size_in_bytes + results,
        code=found.generated_code_size_in_bytes,
    )


def bytes_of(tree: Any) -> int:
    """Returns the bytes of a tree's arrays on each device."""

    def size(leaf: Any) -> int:
        return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))
