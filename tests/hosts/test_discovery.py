"""Who the processes of a run are, by what each launcher leaves in the environment."""

from __future__ import annotations

import pytest

from flaxbert.errors import ConfigError
from flaxbert.hosts import discovery as module
from flaxbert.hosts.discovery import Peers, beside, find_peers

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


@pytest.mark.parametrize(
    ("environment", "changed"),
    [
        (EXPLICIT, {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1235", "JAX_COORDINATOR_PORT": "8483"}),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "[::1]:65535",
                "JAX_COORDINATOR_BIND_ADDRESS": "0.0.0.0:65535",
            },
            {
                "JAX_COORDINATOR_ADDRESS": "[::1]:65534",
                "JAX_COORDINATOR_BIND_ADDRESS": "0.0.0.0:65534",
                "JAX_COORDINATOR_PORT": "8483",
            },
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {"JAX_COORDINATOR_PORT": "8483"}),
        ({"JAX_COORDINATOR_PORT": "5000"}, {"JAX_COORDINATOR_PORT": "5001"}),
        (SLURM, {"JAX_COORDINATOR_PORT": "57351"}),
        ({"JAX_COORDINATOR_ADDRESS": "nowhere"}, {"JAX_COORDINATOR_PORT": "8483"}),
    ],
)
def test_another_port_than_the_runs(environment, changed):
    assert beside(environment) == changed


OTHER_RUN = EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1235"}
STEP = SLURM | {"SLURM_STEP_NUM_TASKS": "4"}
POD = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


def place(environment):
    return find_peers(environment).place


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EXPLICIT, EXPLICIT | {"JAX_PROCESS_ID": "03"}),
        (EXPLICIT, EXPLICIT | SLURM),  # in an allocation, and over ssh
        (EXPLICIT, EXPLICIT | {"JAX_COORDINATOR_PORT": "7"}),  # not asked for
        (EXPLICIT | beside(EXPLICIT), OTHER_RUN),  # a doctor of one run at the port of another
        *(
            (
                EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:7"},
                EXPLICIT | {"JAX_COORDINATOR_ADDRESS": f"{host}:7"},
            )
            for host in ("localhost", "[::1]")
        ),
        (STEP, STEP | {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_ID": "2"}),
        *((STEP, STEP | {"SLURM_STEP_NODELIST": hosts}) for hosts in ("n[1,3]", "n1,n3", "n1")),
        (POD, POD | {"TPU_WORKER_HOSTNAMES": "a,b,c"}),
    ],
)
def test_who_would_be_taken_for_the_same_process(one, other):
    assert place(one) == place(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EXPLICIT, EXPLICIT | {"JAX_PROCESS_ID": "2"}),
        (EXPLICIT, OTHER_RUN),
        (EXPLICIT, EXPLICIT | beside(EXPLICIT)),  # the doctor
        (STEP, STEP | {"SLURM_PROCID": "0"}),
        (STEP, STEP | {"SLURM_JOB_ID": "8"}),
        (STEP, STEP | {"SLURM_STEP_NODELIST": "n[2-3]"}),
        (STEP, STEP | {"SLURM_STEP_NODELIST": "n-a,n-b"}),
        (STEP, STEP | beside(STEP)),
        (POD, POD | {"TPU_WORKER_ID": "0"}),
        (POD, POD | {"MEGASCALE_SLICE_ID": "1"}),
        (POD, POD | beside(POD)),
    ],
)
def test_who_is_another_process(one, other):
    assert place(one) != place(other)
