"""Who the processes of a run are, by what each launcher leaves in the environment."""

from __future__ import annotations

import pytest

from flaxbert.errors import ConfigError
from flaxbert.hosts import discovery as module
from flaxbert.hosts.discovery import Peers, find_peers

EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (EXPLICIT, Peers("10.0.0.1:1234", 4, 3)),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        # JAX's own variable alone says nothing about how many there are.
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, Peers()),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM, None),  # a batch script's own command: srun started nothing
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, Peers()),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, Peers()),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, Peers()),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_who_is_there(environment, found):
    assert find_peers(environment) == found


@pytest.mark.parametrize(("count", "found"), [(1, None), (4, Peers())])
def test_a_pod_of_compute_engine(count, found, monkeypatch):
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    monkeypatch.setattr(GceTpuCluster, "is_env_present", classmethod(lambda cls: True))
    monkeypatch.setattr(module, "_has_tpu", lambda: True)
    monkeypatch.setattr(GceTpuCluster, "get_process_count", classmethod(lambda cls: count))
    assert find_peers({}) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID: not set"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS: not set"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "expected HOST:PORT, got '10.0.0.1'"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:70000"}, "expected HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "many"}, "expected a number, got 'many'"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: expected 0 to 3"),
    ],
)
def test_half_of_the_variables(change, said):
    with pytest.raises(ConfigError, match=said):
        find_peers(EXPLICIT | change)
