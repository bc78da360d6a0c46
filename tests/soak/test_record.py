"""What a soak records, and that it can fail; that one which is stopped leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.soak import damage
from tests.soak.record import Record, runs, scratch

# A soak with a process that has one itself, and that leaves a temporary file when it is killed.
_SOAK = """
import subprocess, sys
from tests.soak.record import Record, scratch
child = "import os, tempfile, time; tempfile.mkdtemp(); os.write(1, b'-1' + bytes([10]))"
child += "; time.sleep(300)"
with scratch() as folder:
    record = Record(folder / "a.json", "", "")
    command = ["sh", "-c", 'echo $$; "$0" -c "$1" & echo $!; wait', sys.executable, child]
    record.run("abc", lambda case: {"code": subprocess.run(command).returncode}, jobs=2)
"""


def test_a_soak_that_found_something_fails(tmp_path):
    record = Record(tmp_path / "a.json", "what", "command")
    record.run("ab", lambda case: {"problems": []})
    record.finish(right=True, count=2)
    with pytest.raises(SystemExit) as ended:
        Record(tmp_path / "a.json", "what", "command").finish(right=False, count=2)
    assert ended.value.code == 1
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["complete"] and not values["right"] and values["versions"]["jax"]


@pytest.mark.parametrize("what", ["command", "versions"])
def test_a_record_goes_on_and_is_not_mixed_with_another(tmp_path, what):
    output, seen = tmp_path / "a.json", []
    Record(output, "what", "command").add("a", {"n": 1})
    record = Record(output, "what", "command")
    record.run("ab", lambda case: seen.append(case) or {"n": 2})
    assert seen == ["b"] and record.cases == {"a": {"n": 1}, "b": {"n": 2}}
    output.write_text(json.dumps(json.loads(output.read_text()) | {what: {}}))
    with pytest.raises(SystemExit, match=f"of (an)?other {what}: delete it"):
        Record(output, "what", "command")


def test_temporary_files_of_a_soak_go_with_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    program = "import tempfile; print(tempfile.mkdtemp())"
    with scratch() as folder:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert Path(done.stdout.strip()).is_relative_to(folder)
    assert not any(tmp_path.iterdir()) and os.environ["TMPDIR"] == str(tmp_path)


def test_a_start_from_nothing_in_silence_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(damage.Checkpoints, "newest_valid", lambda self: None)
    both = [damage.OLDER, damage.NEWER]
    assert "a start from nothing, in silence" in damage.judge(tmp_path / "checkpoints", {}, both)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_soak_that_is_stopped_leaves_nothing_behind(tmp_path, number):
    soak = subprocess.Popen(
        [sys.executable, "-c", _SOAK],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert soak.stdout is not None
    try:
        said = [int(soak.stdout.readline()) for _ in range(6)]  # of two cases at a time
        soak.send_signal(number)
        rest, _ = soak.communicate(timeout=60)  # all who could write there have ended
        assert soak.returncode and not rest  # no third case
        assert not any(tmp_path.iterdir()) and said.count(-1) == 2
        assert not [pid for pid in said if runs(pid)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(soak.pid, signal.SIGKILL)
