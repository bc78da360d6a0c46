"""local.py: its processes, their one exit code, signals, restarts, and that none is left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import ROOT, train_flags

SCRIPT = ROOT / "launch" / "local.py"
_spec = importlib.util.spec_from_file_location("launch_local", SCRIPT)
assert _spec and _spec.loader
local = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(local)

# What a process does is the word of its number; a word with a name ends with a signal.
CHILD = """
import os, signal, sys, time
index = int(os.environ["JAX_PROCESS_ID"])
word = sys.argv[1:][index]
if word.startswith("SIG"): os.kill(os.getpid(), getattr(signal, word))
if word in ("wait", "deaf"):
    signal.signal(signal.SIGTERM, (lambda *_: sys.exit(75)) if word == "wait" else signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
    print("pid", os.getpid(), flush=True)
    time.sleep(60)
    sys.exit(99)
sys.exit(int(word))
"""


def _start(*words: str, flags: tuple[str, ...] = (), program: str = CHILD) -> subprocess.Popen:
    command = [sys.executable, "-SE", "-c", program, *words]
    return subprocess.Popen(
        [sys.executable, "-SE", str(SCRIPT), str(len(words)), *flags, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def _pids(process: subprocess.Popen, count: int) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline().split()[-1]) for _ in range(count)]


def _wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 30
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                break  # ended; whoever inherited it has not asked yet
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("codes", "answer"),
    [
        ([0, 0], 0),
        ([71, 3, 71], 3),
        ([71, 71, 2], 2),
        ([70, 4], 4),
        ([5, 75], 5),
        ([3, 2], 2),
        ([75, 1], 1),
        ([71, 127], 127),
        ([71, 75, 70], 75),
        ([75, 137], 75),
        ([71, 70, 134], 70),
        ([71, 137], 137),
        ([0, 71], 71),
        ([0, 75], 75),
    ],
)
def test_the_most_telling_code(codes, answer):
    assert local.most_telling(codes) == local.most_telling(codes[::-1]) == answer


def test_what_may_do_better():
    assert [code for code in range(256) if local.may_restart(code)] == [70, 71, *range(129, 256)]


def test_what_a_process_is_told(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    told = local.environment_for(1, 3, 4567, None)
    assert told["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:4567"
    assert told["JAX_COORDINATOR_BIND_ADDRESS"] == "127.0.0.1:4567"  # not to the network
    assert (told["JAX_NUM_PROCESSES"], told["JAX_PROCESS_ID"]) == ("3", "1")
    assert told["JAX_PLATFORMS"] == "cuda"
    told = local.environment_for(0, 1, 4567, 2)
    assert (told["JAX_PLATFORMS"], told["JAX_NUM_CPU_DEVICES"]) == ("cpu", "2")


def test_output_can_be_followed():
    program = """
import os, sys
print("one"); print("two" * 2000)
print(os.environ["JAX_COORDINATOR_ADDRESS"], file=sys.stderr)
"""
    code, out, err = _end(_start("", "", program=program))
    long = "two" * 2000
    assert code == 0 and sorted(out.splitlines()) == sorted(["one", long, "[1] one", f"[1] {long}"])
    first, second = sorted(err.splitlines(), key=len)
    assert second == f"[1] {first}" and first.startswith("127.0.0.1:")


def test_the_default_command_gets_the_rest():
    options, command = local._parse(["2", "--devices=1", "--config=a.py", "--workdir=x"])
    assert command == [sys.executable, "-m", "flaxbert.train", "--config=a.py", "--workdir=x"]
    assert (options.processes, options.devices, options.restarts) == (2, 1, 0)
    assert local._parse(["2", "--", sys.executable, "a b", "--"])[1] == [
        sys.executable,
        "a b",
        "--",
    ]


def test_one_code_of_all():
    assert _end(_start("71", "3"))[0] == 3
    assert _end(_start("0", "SIGKILL"))[0] == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_on_to_all(number):
    process = _start("wait", "wait", flags=("--restarts=3",))
    pids = _pids(process, 2)
    process.send_signal(number)
    code, out, _ = _end(process)
    assert code == 75 and "pid" not in out  # no restart after a signal
    _wait_until_gone(pids)


def test_nothing_is_left_when_it_is_killed():
    process = _start("deaf", "deaf", "deaf")
    pids = _pids(process, 3)
    process.kill()
    process.wait()
    _wait_until_gone(pids)
    process.communicate()


def test_a_process_that_hangs_after_a_failure_is_ended():
    process = _start("deaf", "4", flags=("--patience=0.2",))
    pids = _pids(process, 1)
    assert _end(process)[0] == 4
    _wait_until_gone(pids)


@pytest.mark.parametrize(
    ("words", "starts", "code"),
    [
        (["71", "70"], 3, 70),
        (["SIGABRT", "71"], 3, 134),
        (["75", "71"], 1, 75),
        (["3", "71"], 1, 3),
    ],
)
def test_restarts(words, starts, code):
    process = _start(*words, flags=("--restarts=2",))
    ended, _, err = _end(process)
    assert ended == code
    assert err.count(f"ended with {code}; restart") == starts - 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["0"], "at least 1"),
        (["2", "--devices=0"], "at least 1"),
        (["2", "--restarts=-1"], "at least 0"),
        (["2", "--config=x", "--", "true"], "takes its arguments there"),
        (["2", "--", "/no/such/program"], "no such program"),
        ([], "required: N"),
    ],
)
def test_mistakes(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        local.main(flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_help_tells_the_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        local.main(["--help"])
    assert stop.value.code == 0 and "a peer" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train(tiny_bert, reviews, tmp_path):
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "run", mesh__data=2, train__steps=4)
    command = [sys.executable, str(SCRIPT), "2", "--devices=1", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):  # the second finds a finished run
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=200)
        assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "run" / "train_results.json").is_file()
