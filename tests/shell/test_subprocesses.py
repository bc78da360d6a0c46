"""Children of commands: what they answer, and that none of them outlives its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flaxbert.shell import subprocesses
from tests.commands import ROOT, start

# What a child does in place of its work, as Python starts it: it would go on for minutes. As JAX
# may, the first takes no notice of Ctrl-C; as pip does, the second has a temporary folder.
_BEGIN = """
import os, signal, sys, tempfile, time
def go_on():
    with open(os.environ["CHILDREN"], "a") as file: file.write(f"{os.getpid()}\\n")
    time.sleep(300)
"""
_STUBBORN = f"""{_BEGIN}
if "flaxbert.diagnose.canary" in sys.orig_argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.fork()
    go_on()
"""
_TIDY = f"""{_BEGIN}
if "pip" in sys.orig_argv:
    with tempfile.TemporaryDirectory(): go_on()
"""


def test_what_a_child_answers():
    program = "import sys; print(sys.stdin.read()); print('e', file=sys.stderr); sys.exit(3)"
    done = subprocesses.run([sys.executable, "-c", program])
    assert (done.returncode, done.stdout, done.stderr) == (3, "\n", "e\n")
    with pytest.raises(OSError):
        subprocesses.run(["/no/such/program"])


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_ended(pids: list[int]) -> None:
    """Waits for processes that were killed: the kernel ends them, but not at once."""
    until = time.monotonic() + 20
    while left := [pid for pid in pids if _running(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.01)


def test_a_child_that_takes_too_long_ends_with_its_own_children(tmp_path):
    listed = tmp_path / "pid"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocesses.run(["sh", "-c", f"sleep 60 & echo $! > {listed}; wait"], seconds=0.5)
    _wait_until_ended([int(listed.read_text())])


@pytest.fixture
def children(tmp_path, monkeypatch):
    """Returns a function that waits for so many children of a fake module, and names them."""
    listed = tmp_path / "children"
    monkeypatch.setenv("CHILDREN", str(listed))
    for name in ("TMPDIR", "FLAXBERT_CACHE"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))

    def wait_for(count: int) -> list[int]:
        until = time.monotonic() + 60
        while True:
            lines = listed.read_text().splitlines() if listed.exists() else []
            if len(lines) == count:
                return [int(line) for line in lines]
            assert time.monotonic() < until, lines
            time.sleep(0.05)

    return wait_for


def _stop(process: subprocess.Popen[str], number: int, children: list[int]) -> None:
    """A terminal signals the group that it runs, everybody else a process."""
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    try:
        out, told = process.communicate(timeout=30)
        assert process.returncode == 75 and not out and "Traceback" not in told, told
        _wait_until_ended(children)
    finally:
        for pid in filter(_running, children):
            os.kill(pid, signal.SIGKILL)


def _started(command: str, *arguments: str, instead: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "sitecustomize.py").write_text(instead)
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return start(command, *arguments, env=environment, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_doctor_s_canary_ends_with_it(children, tmp_path, number):
    process = _started("doctor", instead=_STUBBORN, folder=tmp_path)
    _stop(process, number, children(2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_download_ends_with_its_command_and_leaves_nothing(children, tmp_path, number):
    flags = ["--from=embedded:minilm", f"--to={tmp_path / 'out'}"]
    process = _started("convert", *flags, instead=_TIDY, folder=tmp_path)
    _stop(process, number, children(1))
    assert not [*(tmp_path / "TMPDIR").iterdir(), *(tmp_path / "FLAXBERT_CACHE").iterdir()]
