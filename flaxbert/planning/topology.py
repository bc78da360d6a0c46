"""The target of a plan: the devices here, or descriptions of TPUs that are not."""

from __future__ import annotations

import dataclasses
from typing import Any

from flaxbert.planning.chips import Chip, chip_of, links_of
from flaxbert.planning.kernel_cycles import KernelCycles
from flaxbert.planning.tpu_devices import devices_of


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices; for described TPUs also their properties."""

    devices: list[Any]
    topology: str = ""
    slices: int = 1
    chip: Chip | None = None
    links: int = 0  # of a chip within its slice
    kernel_cycles: KernelCycles | None = None

    def __str__(self) -> str:
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology


def target_of(topology: str, slices: int) -> Target:
    """Returns the target of some slices; ConfigError without libtpu, or for an unknown shape."""
    chip, shape = chip_of(topology)
    devices = devices_of(topology, slices)
    cycles = KernelCycles(topology, chip)
    return Target(devices, topology, slices, chip, links_of(chip, shape), cycles)
