"""Compares the same run on several TPU slices and meshes, and recommends one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from flaxbert.config import Config
from flaxbert.config import Mesh as MeshConfig
from flaxbert.errors import ConfigError
from flaxbert.planning.footprint import Planned, plan_run
from flaxbert.planning.topology import Target
from flaxbert.run.inputs import Inputs

# Slices within this factor of the fewest chip hours count as equal: then the fastest is chosen.
_AS_GOOD = 1.05


@dataclasses.dataclass(frozen=True)
class Choice:
    """One slice with one mesh."""

    target: Target
    mesh: MeshConfig
    planned: Planned | None
    refused: str = ""  # why there is no plan

    @property
    def fits(self) -> bool:
        return self.planned is not None and self.planned.update.program.memory.margin >= 0

    @property
    def seconds(self) -> float:
        """Seconds of the run if computation and exchanges do not overlap: an upper estimate."""
        planned = self.planned
        return planned.seconds + planned.updates * planned.exchange_seconds if planned else 0.0

    @property
    def chip_hours(self) -> float:
        return self.seconds * len(self.target.devices) / 3600


def meshes_for(asked: MeshConfig, devices: int) -> list[MeshConfig]:
    """Returns the meshes to compare: data parallel, fsdp, and model parallel by 2; or the mesh that
    the config asks for."""
    if asked != MeshConfig() or devices == 1:
        return [asked]
    meshes = [MeshConfig(devices, 1, 1), MeshConfig(1, devices, 1)]
    if devices % 2 == 0:
        meshes.append(MeshConfig(devices // 2, 1, 2))
    return meshes


def compare(config: Config, inputs: Inputs, targets: Sequence[Target]) -> Iterator[Choice]:
    """Yields a choice for each slice and mesh; one that is refused says why."""
    for target in targets:
        for mesh in meshes_for(config.mesh, len(target.devices)):
            try:
                planned = plan_run(dataclasses.replace(config, mesh=mesh), inputs, target)
            except ConfigError as error:
                yield Choice(target, mesh, None, str(error))
            else:
                yield Choice(target, mesh, planned)


def recommended(choices: Sequence[Choice]) -> Choice | None:
    """Returns the fastest of those that fit and need (nearly) the fewest chip hours."""
    fitting = [choice for choice in choices if choice.fits]
    if not fitting:
        return None
    least = min(choice.chip_hours for choice in fitting)
    good = [choice for choice in fitting if choice.chip_hours <= _AS_GOOD * least]
    return min(good, key=lambda choice: choice.seconds)
