"""The report of a plan: lines for people, and the same and more as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from flaxbert.loop.memory import MIB
from flaxbert.planning.chips import GIB, Chip
from flaxbert.planning.compare import Choice, recommended
from flaxbert.planning.estimate import Memory
from flaxbert.planning.footprint import Planned, Update
from flaxbert.planning.topology import Target


def lines(planned: Planned, model: str, target: Target) -> list[str]:
    update, program = planned.update, planned.update.program
    axes = ", ".join(f"{axis} {size}" for axis, size in planned.mesh.items())
    micro = f" in {update.accumulate} micro-batches" if update.accumulate > 1 else ""
    shapes = ", ".join(f"{rows} x {update.row_length}" for rows in update.row_counts)
    where = f" ({target})" if target.topology else ""
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
        told.append(
            f"bytes accessed, on-chip memory too: {_size(program.bytes_accessed)}, "
            f"{planned.bytes_per_token / 1024:,.0f} KiB a token"
        )
    if program.main_memory:
        told.append(f"bytes to and from HBM, at most: {_size(program.main_memory)}")
    for found in program.exchanges:
        along = " and ".join(found.axes) or "unknown axes"
        between = f" between {found.slices} slices" if found.slices > 1 else ""
        told.append(
            f"exchange: {found.count} {found.kind} over {along}{between}, {_size(found.bytes)}"
        )
    told.append(f"largest at once: {_largest(update)}")
    if planned.evaluation:
        most = max(planned.evaluation.programs, key=lambda program: program.memory.needed)
        told.append(
            f"evaluation: {_count(planned.evaluation.batches, 'batch', 'es')}, "
            f"{_count(planned.evaluations, 'time')}; memory {_fit(most.memory)}"
        )
    return [*told, *_time(planned, target.chip)]


def _largest(update: Update) -> str:
    largest = update.largest
    if largest is None:
        return "unknown: this device does not report its memory"
    told = f"{_count(largest.sequences, 'sequence')}, {largest.rows:,} x {update.row_length} tokens"
    if largest.too_many:
        beyond = f"{largest.too_many:,} x {update.row_length} do not"
        return f"{told} fit, {beyond}" if largest.rows else f"not even these rows fit; {beyond}"
    if largest.memory is not None:
        return f"at least {told}, of which {_fit(largest.memory)}"
    if largest.rows:
        return f"by proportion about {told}, or somewhat more; --largest compiles it"
    return "cannot be estimated from these rows; --largest compiles more"


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
    for counted in program.kernels:
        how = "by formula" if counted.by_formula else "compiled alone"
        cycles = counted.calls * counted.cycles
        told.append(
            f"  of them {counted.calls} x {counted.kernel.name} ({how}): "
            f"{100 * cycles / program.cycles:.1f} %"
        )
    if planned.exchange_seconds:
        told.append(
            f"  exchanges are not in it: at least {1e3 * planned.exchange_seconds:.1f} ms by "
            "links and network, overlapping or not"
        )
    elif program.exchanges:
        told.append("  exchanges are not in it")
    if program.copied:
        told.append(
            f"  overlapping copies are not in it: {_size(program.copied)}, "
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


_COLUMNS = {
    "slice": 12,
    "mesh": 16,
    "memory left": 18,
    "update": 10,
    "exchanges": 10,
    "sequences/s": 12,
    "MFU": 7,
    "run": 12,
    "chip hours": 0,
}


def compared_head() -> str:
    return _columns(_COLUMNS)


def compared(choice: Choice) -> str:
    """Returns a row of the table below `compared_head`."""
    planned = choice.planned
    if planned is None:
        return _columns((str(choice.target), _mesh(choice.mesh), "refused", *[""] * 6))
    margin = planned.update.program.memory.margin
    sequences = planned.update.sequences / planned.slowest_seconds
    mfu = planned.update.flops_of_real_tokens / planned.slowest_seconds / planned.peak_flops
    return _columns(
        (
            str(choice.target),
            _mesh(choice.mesh),
            _size(margin) if margin >= 0 else f"NO: {_size(-margin)} short",
            f"{1e3 * planned.update.seconds:.1f} ms",
            f"{1e3 * planned.exchange_seconds:.1f} ms",
            f"{sequences:,.0f}",
            f"{100 * mfu:.1f} %",
            _duration(choice.seconds),
            f"{choice.chip_hours:.3f}",
        )
    )


def _columns(texts: Iterable[str]) -> str:
    return "  ".join(map(str.ljust, texts, _COLUMNS.values())).rstrip()


def recommendation(choices: Sequence[Choice]) -> list[str]:
    """Returns lines that say which slice and mesh to use of those compared."""
    told = [
        f"{choice.target}, mesh {_mesh(choice.mesh)}: {choice.refused}"
        for choice in choices
        if choice.refused
    ]
    best = recommended(choices)
    if best is None:
        return [*told, "None of them fits."]
    fastest = min((choice for choice in choices if choice.fits), key=lambda each: each.seconds)
    told.append(
        f"recommended: {best.target}, mesh {_mesh(best.mesh)}: fewest chip hours, or nearly"
    )
    if fastest is not best:
        told.append(f"fastest: {fastest.target}, mesh {_mesh(fastest.mesh)}")
    told.append(
        "Time is the TPU compiler's estimate; exchanges are lower bounds, without overlap with "
        "computation."
    )
    return told


def _mesh(mesh: Any) -> str:
    sizes = {axis: size for axis, size in dataclasses.asdict(mesh).items() if size > 1}
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"


def as_json(planned: Planned, target: Target) -> dict[str, Any]:
    """Returns all values; sizes in bytes, times in seconds."""
    chip = target.chip
    return {
        "topology": target.topology,
        "slices": target.slices,
        "chip": dataclasses.asdict(chip) if chip else None,
        "time_is": "the TPU compiler's estimate, without exchanges" if chip else "unknown",
        **dataclasses.asdict(planned),
        "bytes_per_token": planned.bytes_per_token,
        "slowest_update_seconds": planned.slowest_seconds,
        "sequences_per_second": planned.sequences_per_second,
        "mfu": planned.mfu,
        "seconds": planned.seconds,
    }


def choice_as_json(choice: Choice) -> dict[str, Any]:
    if choice.planned is None:
        refused = {"topology": choice.target.topology, "slices": choice.target.slices}
        return {**refused, "mesh": dataclasses.asdict(choice.mesh), "refused": choice.refused}
    return as_json(choice.planned, choice.target)


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
