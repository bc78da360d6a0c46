"""What a run is planned for: devices that are here, or descriptions of TPUs that are not.

The surprising thing: no TPU is asked and none is needed, only its compiler (libtpu), which runs on
any Linux machine. JAX is told to stay on the CPU, so that a TPU that is here is left alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

import jax

from flaxbert.errors import ConfigError
from flaxbert.planning.chips import Chip, chip_of, links_of
from flaxbert.planning.kernel_cycles import KernelCycles

_NO_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # ours runs beside a child of its own
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices, and what is known of TPUs among them; only the devices of those that are here."""

    devices: list[Any]
    topology: str = ""
    slices: int = 1
    chip: Chip | None = None
    links: int = 0  # of a chip within its slice
    kernel_cycles: KernelCycles | None = None

    def __str__(self) -> str:
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology


def target_of(topology: str, slices: int) -> Target:
    """Returns some slices of TPUs.

    Raises:
      ConfigError: no libtpu, or a shape that there is not.
    """
    chip, shape = chip_of(topology)
    devices = devices_of(topology, slices)
    cycles = KernelCycles(topology, chip)
    return Target(devices, topology, slices, chip, links_of(chip, shape), cycles)


def devices_of(topology: str, slices: int) -> list[Any]:
    """Returns the devices of a slice (or of several), to compile for and for nothing else.

    Raises:
      ConfigError: no libtpu, or a shape that there is not.
    """
    chip, shape = chip_of(topology)
    if not importlib.util.find_spec("libtpu") and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ConfigError(
            f"--topology={topology} needs the TPU's compiler: python -m pip install 'flaxbert[tpu]'"
        )
    # There is no TPU VM that could be asked about itself; without answers the compiler warns.
    for name, value in _NO_HOST.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    # Programs of another chip could not be read from the cache here.
    jax.config.update("jax_enable_compilation_cache", False)
    from jax.experimental import topologies

    options: dict[str, Any] = dict(chip.one_device)
    if shape in ("1x1", "1x1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.compiler_name}:{shape}", **options
        )
    except RuntimeError as error:  # JaxRuntimeError and NotImplementedError are
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--topology={topology}: the TPU's compiler refuses it: {said}"
        ) from error
    return list(found.devices)
