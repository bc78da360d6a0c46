"""What is told of a plan: lines for people, and the same and more for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from flaxbert.loop.memory import MIB
from flaxbert.planning.chips import GIB, Chip
from flaxbert.planning.estimate import Memory
from flaxbert.planning.run import Planned


def lines(planned: Planned, model: str, topology: str, slices: int, chip: Chip | None) -> list[str]:
    update, program = planned.update, planned.update.program
    axes = ", ".join(f"{axis} {size}" for axis, size in planned.mesh.items())
    micro = f" in {update.accumulate} micro-batches" if update.accumulate > 1 else ""
    shapes = ", ".join(f"{rows} x {update.row_length}" for rows in update.row_counts)
    where = f" ({slices} x {topology})" if slices > 1 else f" ({topology})" if topology else ""
    flops = program.flops * planned.devices
    told = [
        f"devices: {planned.devices} {planned.kind}{where}, {_count(planned.hosts, 'host')}; "
        f"mesh {axes}; {planned.dtype}",
        f"model: {model}, parameters {_size(program.memory.parameters)}, moments "
        f"{_size(program.memory.moments)} on each device",
        f"an update: {update.sequences} sequences{micro}, rows {shapes} tokens, "
        f"{100 * update.padding_share:.1f} % padding; the fullest compiled in "
        f"{update.compile_seconds:.0f} s",
        f"memory of a device: {_fit(program.memory)}; activations, gradients and others "
        f"{_size(program.memory.temporaries)}, program {_size(program.memory.code)}",
        f"FLOPs: {flops / 1e12:.3f} T, {flops / update.flops_of_model:.3f} times the model's",
    ]
    if program.bytes_accessed:
        told.append(f"bytes accessed, on-chip memory too: {_size(program.bytes_accessed)}")
    for found in program.exchanges:
        along = " and ".join(found.axes) or "axes that are not understood"
        told.append(f"exchange: {found.count} {found.kind} over {along}, {_size(found.bytes)}")
    if planned.evaluation:
        most = max(planned.evaluation.programs, key=lambda program: program.memory.needed)
        told.append(
            f"evaluation: {_count(planned.evaluation.batches, 'batch', 'es')}, "
            f"{_count(planned.evaluations, 'time')}; memory {_fit(most.memory)}"
        )
    return [*told, *_time(planned, chip)]


def _time(planned: Planned, chip: Chip | None) -> list[str]:
    update, program = planned.update, planned.update.program
    if chip is None or not program.cycles:
        return ["time: this device's compiler gives no estimate"]
    mfu = f"MFU {100 * planned.mfu:.1f} %, " if planned.mfu is not None else ""
    told = [
        f"time by the TPU compiler's estimate: {1e3 * update.seconds:.1f} ms an update on average, "
        f"{mfu}{planned.sequences_per_second:,.0f} sequences/s"
    ]
    told += [
        f"  {part}: {100 * cycles / program.cycles:.1f} %" for part, cycles in program.parts.items()
    ]
    if program.exchanges:
        told.append("  exchanges are not in it")
    if program.copied:
        told.append(
            f"  copies beside it are not in it: {_size(program.copied)}, "
            f"{1e3 * program.copied / chip.bandwidth:.1f} ms if nothing else ran"
        )
    if program.without_cycles:
        kernels = ", ".join(f"{name} {calls}" for name, calls in program.without_cycles.items())
        told.append(f"  kernels without an estimate: {kernels}")
    evaluations = f" and {_count(planned.evaluations, 'evaluation')}" if planned.evaluations else ""
    told.append(
        f"the run by that estimate: {_count(planned.updates, 'update')}{evaluations} in "
        f"{_duration(planned.seconds)}"
    )
    return told


def as_json(planned: Planned, topology: str, slices: int, chip: Chip | None) -> dict[str, Any]:
    """Returns everything; sizes in bytes, times in seconds."""
    return {
        "topology": topology,
        "slices": slices,
        "chip": dataclasses.asdict(chip) if chip else None,
        "time_is": "the TPU compiler's estimate, without exchanges" if chip else "unknown",
        **dataclasses.asdict(planned),
        "sequences_per_second": planned.sequences_per_second,
        "mfu": planned.mfu,
        "seconds": planned.seconds,
    }


def _fit(held: Memory) -> str:
    needed = _size(held.needed)
    if not held.limit:
        return needed
    needed = f"{needed} of {_size(held.limit)}"
    if held.margin < 0:
        return f"{needed}, does NOT fit: {_size(-held.margin)} short"
    return f"{needed}, fits: {_size(held.margin)} left"


def _size(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _count(number: int, name: str, plural: str = "s") -> str:
    return f"{number:,} {name}{plural if number != 1 else ''}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
