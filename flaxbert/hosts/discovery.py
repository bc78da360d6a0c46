"""Who the processes of a run are, asked of the environment before JAX is.

Slurm, Open MPI and TPU pods say it themselves, and JAX reads it there. Elsewhere three variables
do: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. The
surprising thing: a command inside an allocation, or on the only host of a TPU, is one process, and
nothing is started for it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from flaxbert.errors import ConfigError

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
BIND, PORT = "JAX_COORDINATOR_BIND_ADDRESS", "JAX_COORDINATOR_PORT"
COUNT, INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# (how many processes a launcher started, what JAX needs of it besides)
_LAUNCHERS = {
    # Of the step, which srun makes: SLURM_NTASKS alone stands in every batch script, too.
    "slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "ompi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}


@dataclasses.dataclass(frozen=True)
class Peers:
    """How JAX is to find the processes: all by itself where `coordinator` is empty.

    `place` tells this process from the others that may run on its machine: JAX takes two with the
    same one for one process, started again.
    """

    coordinator: str = ""
    count: int = 0
    index: int = 0
    place: str = dataclasses.field(default="", compare=False)


def find_peers(environment: Mapping[str, str]) -> Peers | None:
    """Returns how the processes of this run find each other; None if this is the only one.

    Raises:
      ConfigError: the three variables are not all there, or no numbers that fit.
    """
    given = {name: environment.get(name, "") for name in (COORDINATOR, COUNT, INDEX)}
    if given[COUNT] or given[INDEX]:
        return _explicit(given)
    for count, index in _LAUNCHERS.values():
        if environment.get(count, "").isdecimal() and environment.get(index, "").isdecimal():
            several = int(environment[count]) > 1
            return Peers(place=_detected_place(environment)) if several else None
    platforms = environment.get("JAX_PLATFORMS", "")
    if (not platforms or "tpu" in platforms) and _tpu_hosts(environment) > 1:
        return Peers(place=_detected_place(environment))
    return None


def beside(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what to set so that these processes meet at another port than the run's.

    A run that is going on takes whoever comes to its own for one of its processes, started again,
    and ends.
    """
    changed = {
        name: f"{host}:{_next_port(port)}"
        for name in (COORDINATOR, BIND)
        for host, _, port in [environment.get(name, "").rpartition(":")]
        if port.isdecimal()
    }
    # Where JAX finds the coordinator by itself: on TPUs at 8482, under Slurm and Open MPI at a port
    # of the job, from 61440 on.
    given, job = environment.get(PORT, ""), environment.get("SLURM_JOB_ID", "")
    if given.isdecimal():
        return changed | {PORT: _next_port(given)}
    return changed | {PORT: str(57_344 + int(job) % 4096 if job.isdecimal() else 8483)}


def _next_port(port: str) -> str:
    return str(int(port) + 1 if int(port) < 65_535 else int(port) - 1)


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
    # However it is spelled, as JAX meets: nothing else counts where all three are given.
    place = f"{'127.0.0.1' if is_loopback(host) else host}:{int(port)} {index}"
    return Peers(given[COORDINATOR], count, index, place) if count > 1 else None


def is_loopback(host: str) -> bool:
    return host.strip("[]") in ("localhost", "127.0.0.1", "::1")


def _detected_place(environment: Mapping[str, str]) -> str:
    """Returns what JAX makes of a launcher's variables, where and as which process: their values.

    On a Compute Engine host of a TPU pod there are none: it has one process.
    """
    # Slurm's coordinator is on the first host: n1 of n[1-2], n[1,3] and n1,n2.
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    first_host = re.sub(r"^([^,\[]*)\[?([^,\-\]]*).*", r"\1\2", hosts)
    variables = (
        *(COORDINATOR, PORT, "SLURM_JOB_ID", "SLURM_PROCID"),
        *("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"),
        *("MEGASCALE_SLICE_ID", "TPU_WORKER_ID", "CLOUD_TPU_TASK_ID"),
    )
    return " ".join([first_host, *(environment.get(variable, "") for variable in variables)])


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
    try:  # Compute Engine: its metadata server knows, and JAX knows how to ask
        from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

        return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1
    except ImportError:  # moved in another JAX
        return 1
