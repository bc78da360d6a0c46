"""A process's place in its run: one on a machine, whoever else runs there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from flaxbert.errors import ConfigError
from flaxbert.hosts import place as module
from flaxbert.hosts.place import held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a guard that Linux alone has")

_HOLDS = """
import sys
from flaxbert.hosts.place import held
with held(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def place(tmp_path):
    """One that no other test of this machine has, in whatever checkout."""
    return str(tmp_path)


@pytest.fixture
def other(place):
    """A process that has the place."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_is_there(place, other, monkeypatch, capsys):
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    told = f"pid {other.pid} on this machine is this process of the run already"
    for _ in range(3):
        with pytest.raises(ConfigError, match=told), held(place):
            raise AssertionError("two have one place")
    assert capsys.readouterr().err.count("waiting up to") == 3  # once each


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM])
def test_a_place_goes_with_its_process(ends, place, other, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    other.send_signal(ends)
    other.wait()
    for _ in range(2):  # nor does it outlive the block
        with held(place):
            pass


def test_one_that_is_about_to_end_is_waited_for(place, other, capsys):
    """As after the loss of a process: whoever starts all again may be quicker than the others."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({other.pid}, 9)"]
    )
    with held(place):
        assert f"pid {other.pid} on this machine" in capsys.readouterr().err
    assert watcher.wait() == 0


def test_others_have_places_of_their_own(place):
    with held(place + " 0"), held(place + " 1"):
        pass


def test_where_there_are_no_such_names_nothing_is_held(place, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with held(place), held(place):
        pass
