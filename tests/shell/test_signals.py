"""Signals on real processes: when they end a command, when they wait, and with which code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from flaxbert.errors import InterruptedRun
from flaxbert.shell import signals
from tests.commands import ROOT

# What every program below begins with.
_BEGIN = """
import os, signal, sys, time
from flaxbert.shell import signals
stop = signals.install()
print("ready", flush=True)
"""


def _run(body: str, *signals: tuple[float, int]) -> tuple[int, str, float]:
    """Starts a program, sends (after seconds, signal) each; returns code, stderr and the seconds
    from the last signal to the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BEGIN + body],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    for delay, number in signals:
        time.sleep(delay)
        process.send_signal(number)
    sent = time.monotonic()
    _, told = process.communicate(timeout=60)
    return process.returncode, told, time.monotonic() - sent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_with_nothing_to_save_it_ends_at_once(number):
    code, told, _ = _run("time.sleep(60)", (0.1, number))
    assert code == 75
    assert told.count("\n") == 1 and "nothing to save" in told


def test_inside_c_code_too():
    """One call that lets other threads run, as compilers do, and never returns to Python."""
    body = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)"
    code, told, seconds = _run(body, (0.3, signal.SIGTERM))
    assert code == 75 and "nothing to save" in told
    assert seconds < 5  # the call itself takes minutes


def test_nothing_is_raised_in_the_middle_of_an_import():
    """An exception here would be swallowed; NumPy's import crashes from it."""
    body = (
        "try:\n    time.sleep(60)\nexcept BaseException as error:\n"
        "    print('caught', repr(error), file=sys.stderr)\ntime.sleep(60)"
    )
    code, told, _ = _run(body, (0.1, signal.SIGINT))
    assert code == 75 and "caught" not in told


DEFERRED = """
try:
    with stop.deferred():
        while not stop.requested:
            time.sleep(0.01)
        print("saving", file=sys.stderr)
        {saving}
except signals.InterruptedRun:
    print("saved", file=sys.stderr)
    sys.exit(75)
"""


def test_deferred_it_waits_for_the_save():
    code, told, _ = _run(DEFERRED.format(saving="time.sleep(0.2)"), (0.1, signal.SIGTERM))
    assert code == 75
    assert "stopping after this update" in told and told.endswith("saving\nsaved\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_save_at_once(number):
    body = DEFERRED.format(
        saving="import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)"
    )
    code, told, seconds = _run(body, (0.1, number), (1.0, number))
    assert code == 128 + number and "\nsaved" not in told
    assert seconds < 5


def test_a_signal_that_comes_twice_at_once_is_one():
    """GNU timeout signals its child, and then the group of the child."""
    body = DEFERRED.format(saving="time.sleep(0.5)")
    code, told, _ = _run(body, (0.1, signal.SIGTERM), (0.05, signal.SIGTERM))
    assert code == 75 and told.endswith("saved\n")


def test_what_must_not_stay_is_undone(tmp_path):
    litter = tmp_path / "litter"
    litter.touch()
    body = f"with signals.undoing(lambda: os.unlink({str(litter)!r})): time.sleep(60)"
    assert _run(body, (0.1, signal.SIGTERM))[0] == 75
    assert not litter.exists()


def test_an_undo_that_hangs_or_fails_does_not_keep_the_process():
    body = (
        "with signals.undoing(lambda: time.sleep(60)), signals.undoing(lambda: 1 / 0):"
        " time.sleep(60)"
    )
    code, _, seconds = _run(body, (0.1, signal.SIGTERM))
    assert code == 75 and seconds < 10


def test_a_signal_does_not_change_a_settled_outcome():
    """The command's error has been told; it is about to exit with its code."""
    code, told, _ = _run("stop.settle(); time.sleep(0.5); sys.exit(4)", (0.1, signal.SIGTERM))
    assert code == 4 and told == ""


def test_an_error_does_not_overtake_a_signal_that_came_before_it():
    """The process is being left: one outcome is told, not two."""
    body = (
        "stop.on_leaving(lambda: time.sleep(0.5)); time.sleep(0.3);"
        " stop.settle(); print('error: told', file=sys.stderr); sys.exit(4)"
    )
    code, told, _ = _run(body, (0.1, signal.SIGTERM))
    assert code == 75 and "told" not in told


def test_an_error_in_a_save_wins_over_the_request():
    body = (
        "try:\n    with stop.deferred():\n        while not stop.requested: time.sleep(0.01)\n"
        "        raise OSError('full')\n"
        "except OSError:\n    time.sleep(0.2); sys.exit(4)"
    )
    assert _run(body, (0.1, signal.SIGTERM))[0] == 4


def test_check_and_the_end_of_deferred_raise():
    stop = signals.StopSignal()
    stop.check()
    with stop.deferred():
        pass
    with pytest.raises(InterruptedRun), stop.deferred():
        stop.arrived(signal.SIGTERM, again=False)
        with pytest.raises(InterruptedRun):
            stop.check()
        assert stop.requested


def test_handlers_stand_before_slow_imports():
    """What is imported until then is what Python itself starts with, and threading."""
    code = (
        "import sys; before = set(sys.modules); from flaxbert.shell import signals;"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    slow = {"absl", "ml_collections", "numpy", "dataclasses", "inspect", "yaml", "jax"}
    assert not slow & set(eval(done.stdout))
    for command in ("train", "evaluate", "predict", "convert", "doctor"):
        text = (ROOT / "flaxbert" / f"{command}.py").read_text(encoding="utf-8")
        before_other_imports = text[: text.index("\nfrom absl")]
        first, *rest = before_other_imports.split('if __name__ == "__main__":\n')
        assert (
            "\nfrom flaxbert.shell import signals" in first and first.count("import ") == 2
        )  # and __future__
        assert len(rest) == 1 and "\n    signals.install()" in "\n" + rest[0]


def test_ctrl_c_reaches_the_whole_group_and_ends_quietly(tmp_path):
    """predict, while it waits for lines on standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flaxbert.predict", "--model=x", "--input=-", "--output=-"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, "")
    assert "Traceback" not in told and "same command again" in told


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch):
    def gone(descriptor, data):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(signals.os, "write", gone)
    signals.tell("nobody reads this")
