"""A picture of a plan: a device's memory and an update's time, by parts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxbert.errors import ConfigError
from flaxbert.planning.chips import GIB

if TYPE_CHECKING:
    from flaxbert.planning.footprint import Planned
    from flaxbert.planning.topology import Target

_SUFFIXES = (".png", ".svg", ".pdf")


def check(file: Path) -> None:
    """Raises ConfigError for an unknown kind of file, or if matplotlib is missing."""
    if file.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--picture={file}: expected a name that ends in {', '.join(_SUFFIXES)}.")
    if not importlib.util.find_spec("matplotlib"):
        raise ConfigError(
            f"--picture={file} needs matplotlib: python -m pip install 'flaxbert[picture]'"
        )


def save(file: Path, planned: Planned, target: Target) -> None:
    """Draws memory, and time if the compiler estimates it."""
    from matplotlib.figure import Figure

    has_time = bool(target.chip and planned.update.program.cycles)
    figure = Figure(figsize=(11, 5) if has_time else (6, 5), layout="constrained")
    memory, *time = figure.subplots(1, 2 if has_time else 1, squeeze=False)[0]
    _memory(memory, planned)
    if has_time:
        _time(time[0], planned, target)
    where = f" ({target})" if target.topology else ""
    update = planned.update
    micro = f"{update.accumulate} micro-batches of " if update.accumulate > 1 else ""
    shape = f"{micro}{update.rows} x {update.row_length} tokens"
    figure.suptitle(f"The fullest update, {shape}, on {planned.devices} {planned.kind}{where}")
    figure.savefig(file, dpi=150)


def _memory(axes: Any, planned: Planned) -> None:
    held = planned.update.program.memory
    parts = {
        "parameters": held.parameters,
        "moments": held.moments,
        "activations, gradients and others": held.temporaries,
        "program": held.code,
    }
    if held.limit:
        parts["free"] = max(0, held.margin)
    names = [f"{name}\n{size / GIB:.2f} GiB" for name, size in parts.items()]
    colours = [*(f"C{number}" for number in range(4)), "lightgrey"]
    axes.barh(names, [size / GIB for size in parts.values()], color=colours[: len(parts)])
    axes.invert_yaxis()
    axes.set_xlabel("GiB of each device")
    title = f"memory: {held.needed / GIB:.2f}"
    axes.set_title(f"{title} of {held.limit / GIB:.2f} GiB" if held.limit else f"{title} GiB")


def _time(axes: Any, planned: Planned, target: Target) -> None:
    program, chip = planned.update.program, target.chip
    assert chip
    parts = {part: 1e3 * cycles / chip.clock for part, cycles in program.parts.items()}
    colours = ["C4" if "backward" in part else "C0" for part in parts]
    if planned.exchange_seconds:
        parts["exchanges, at least;\noverlapping or not"] = 1e3 * planned.exchange_seconds
        colours.append("C3")
    axes.barh(list(parts), list(parts.values()), color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("ms by the TPU compiler's estimate")
    axes.set_title(f"time: {1e3 * program.seconds(chip):.1f} ms without exchanges")
