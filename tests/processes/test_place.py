"""A process's place in its run: one on a machine, whoever else runs there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from flaxbert.errors import ConfigError
from flaxbert.processes.found import beside
from flaxbert.processes.place import held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a guard that Linux alone has")

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "h:12", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}
POD = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}

_HOLDS = """
from flaxbert.processes.place import held
with held({environment}):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def a_process():
    """Starts a process that holds a place, and ends it in the end."""
    processes = []

    def start(environment):
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDS.format(environment=environment)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("environment", [EXPLICIT, SLURM, POD, {}])
def test_a_second_process_is_refused_and_told_who_is_there(environment, a_process):
    first = a_process(environment)
    for _ in range(3):
        told = pytest.raises(ConfigError, match=f"pid {first.pid} on this machine")
        with told, held(environment):
            raise AssertionError("two have one place")


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM])
def test_a_place_goes_with_its_process(ends, a_process):
    first = a_process(EXPLICIT)
    first.send_signal(ends)
    first.wait()
    with held(EXPLICIT):
        pass
    with held(EXPLICIT):  # nor does it outlive the block
        pass


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EXPLICIT, EXPLICIT | {"JAX_PROCESS_ID": "0"}),  # of one run
        (EXPLICIT, EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "h:13"}),  # of another
        (EXPLICIT, EXPLICIT | beside(EXPLICIT)),  # the doctor
        (SLURM, SLURM | {"SLURM_PROCID": "0"}),
        (SLURM, SLURM | {"SLURM_JOB_ID": "8"}),
        (POD, POD | {"TPU_WORKER_ID": "0"}),
        (POD, POD | beside(POD)),
    ],
)
def test_others_have_places_of_their_own(one, other):
    with held(one), held(other):
        pass


def test_where_there_are_no_such_names_nothing_is_held(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with held(EXPLICIT):
        pass
