"""Detects from the environment, before JAX starts, whether a run has several processes.

Slurm, Open MPI and TPU pods set variables that JAX reads itself. Elsewhere set three variables:
JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. A command
inside an allocation, or on the only host of a TPU, is a single process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from flaxbert.errors import ConfigError

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
BIND = "JAX_COORDINATOR_BIND_ADDRESS"
COUNT, INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# (variable with the number of processes that a launcher started, variable with the own number)
_LAUNCHERS = (
    # Those of srun's step: SLURM_NTASKS is set in every batch script too.
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)


@dataclasses.dataclass(frozen=True)
class Peers:
    """How JAX finds the processes: by itself if `coordinator` is empty."""

    coordinator: str = ""
    count: int = 0
    index: int = 0


def find_peers(environment: Mapping[str, str]) -> Peers | None:
    """Returns how the processes of this run find each other; None if this is the only one.

    Raises:
      ConfigError: some of the three variables are missing or invalid.
    """
    given = {name: environment.get(name, "") for name in (COORDINATOR, COUNT, INDEX)}
    if given[COUNT] or given[INDEX]:
        return _explicit(given)
    for count, index in _LAUNCHERS:
        if environment.get(count, "").isdecimal() and environment.get(index, "").isdecimal():
            return Peers() if int(environment[count]) > 1 else None
    platforms = environment.get("JAX_PLATFORMS", "")
    if (not platforms or "tpu" in platforms) and _tpu_hosts(environment) > 1:
        return Peers()
    return None


def _explicit(given: Mapping[str, str]) -> Peers | None:
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not set. Several processes need all of {COORDINATOR} "
            f"(host:port of process 0), {COUNT} and {INDEX}; a single one needs none of them."
        )
    host, _, port = given[COORDINATOR].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigError(f"{COORDINATOR}: expected HOST:PORT, got {given[COORDINATOR]!r}.")
    for name in (COUNT, INDEX):
        if not given[name].isdecimal():
            raise ConfigError(f"{name}: expected a number, got {given[name]!r}.")
    count, index = int(given[COUNT]), int(given[INDEX])
    if not index < count:
        raise ConfigError(f"{INDEX}={index}: expected 0 to {count - 1}, for {COUNT}={count}.")
    return Peers(given[COORDINATOR], count, index) if count > 1 else None


def _has_tpu() -> bool:
    return Path("/dev/vfio").exists() or any(Path("/dev").glob("accel[0-9]*"))


def _tpu_hosts(environment: Mapping[str, str]) -> int:
    """Returns how many hosts the TPU slices of this run have; 1 where there is none."""
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):  # GKE
        if environment.get(name):
            slices = environment.get("MEGASCALE_NUM_SLICES", "1")
            return len(environment[name].split(",")) * int(slices if slices.isdecimal() else 1)
    if not _has_tpu():
        return 1
    try:  # Compute Engine: JAX asks its metadata server, but has no public function for it
        from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

        return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1
    except ImportError:  # moved in another JAX
        return 1
