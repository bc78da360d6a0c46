"""Descriptions of TPUs that are not here, for the compiler to compile for.

Note: no TPU is needed, only its compiler (libtpu), which runs on any Linux machine. JAX is set to
use the CPU, so that a TPU that is here is not touched.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax

from flaxbert.errors import ConfigError, first_line
from flaxbert.planning.chips import chip_of

_NO_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # ours runs beside a child of its own
}


def devices_of(topology: str, slices: int) -> list[Any]:
    """Returns the devices of a slice (or of several), for compilation only.

    Raises ConfigError if there is no libtpu, or no such shape.
    """
    chip, shape = chip_of(topology)
    if not importlib.util.find_spec("libtpu") and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ConfigError(
            f"--topology={topology} needs the TPU's compiler: python -m pip install 'flaxbert[tpu]'"
        )
    # There is no TPU VM to ask; without these answers the compiler warns.
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
        said = f"the TPU's compiler refuses it: {first_line(error)}"
        raise ConfigError(f"--topology={topology}: {said}") from error
    return list(found.devices)
