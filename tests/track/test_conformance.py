"""What every tracker keeps to: each file in flaxbert/track is tested here for being there.

Whoever adds one adds a line to READERS.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import socket
import sys

import numpy as np
import pytest

from flaxbert import config, track
from flaxbert.config import make_config, members
from flaxbert.errors import ConfigError
from flaxbert.storage.workdir import Workdir
from flaxbert.track import Trackers, open_trackers


def _read_jsonl(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], f"{line['split']}/{line['name']}"): line["value"] for line in lines}


def _read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    return {(event.step, name): event.value for name in names for event in events.Scalars(name)}


# folder -> {(step, "split/name"): value}; None: keeps no values
READERS = {"console": None, "jsonl": _read_jsonl, "tensorboard": _read_tensorboard}
MEMBERS = members("track")
OPTIONAL = [name for name in MEMBERS if name != "jsonl"]


def _open(folder, name, **since) -> Trackers:
    folder.mkdir(exist_ok=True)
    chosen = make_config({"log": {"trackers": [name]}})
    return open_trackers(chosen, Workdir(folder), total=9, **since)


def _run(trackers: Trackers, steps: range) -> None:
    """What the loop tells: a line and values of each update, an evaluation, saves."""
    for step in steps:
        trackers.advance()
        loss = np.float32(1 / step) if step % 4 else float("nan")
        trackers.scalars(step, step / 3, "train", {"loss": loss, "learning_rate": 1e-5 / step})
        trackers.text(f"update {step}")
        if step % 3 == 0:
            trackers.scalars(step, step / 3, "validation", {"accuracy": step / 10})
            trackers.sync()


def _in_float32(values):
    return {at: np.float32(np.nan if value is None else value) for at, value in values.items()}


@pytest.mark.parametrize("name", MEMBERS)
def test_values_are_those_of_metrics_jsonl_also_after_a_resume(name, tmp_path):
    first = _open(tmp_path, name)
    _run(first, range(1, 6))
    first.close()
    # A kill after update 5; the last checkpoint had seen update 3 but not its evaluation.
    again = _open(tmp_path, name, step=3, evaluated=0)
    again.scalars(3, 1.0, "validation", {"accuracy": 0.3})
    _run(again, range(4, 10))
    again.close()
    record = _read_jsonl(tmp_path)
    assert {step for step, at in record if at == "train/loss"} == set(range(1, 10))
    if READERS[name]:
        # TensorBoard's values are of 32 bits.
        np.testing.assert_equal(_in_float32(READERS[name](tmp_path)), _in_float32(record))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_second_close_does_nothing(name, tmp_path, capsys):
    trackers = _open(tmp_path, name)
    _run(trackers, range(1, 4))
    trackers.close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    trackers.close()
    trackers.text("nobody is told")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "WARNING" not in (err := capsys.readouterr().err) and "nobody" not in err


@pytest.fixture
def fail(monkeypatch):
    """fail(name, method): that method of that tracker meets a full disk each time; or `make`."""

    def arrange(name, method):
        module = importlib.import_module(f"flaxbert.track.{name}")
        make = module.make

        def full(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")

        def broken(start):
            tracker = make(start)
            real = getattr(tracker, method)
            setattr(tracker, method, full if method != "close" else lambda: (real(), full()))
            return tracker

        monkeypatch.setattr(module, "make", full if method == "make" else broken)

    return arrange


METHODS = ("make", "scalars", "text", "advance", "sync", "close")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPTIONAL)
def test_one_that_fails_is_left_out_and_told_once(name, method, fail, tmp_path, capsys):
    whole = _open(tmp_path / "whole", "jsonl")
    _run(whole, range(1, 10))
    whole.close()
    said = capsys.readouterr().err
    fail(name, method)
    trackers = _open(tmp_path / "run", name)
    _run(trackers, range(1, 10))
    trackers.close()
    np.testing.assert_equal(_read_jsonl(tmp_path / "run"), _read_jsonl(tmp_path / "whole"))
    err = capsys.readouterr().err
    if name == "console":  # nobody is left to tell it to
        assert "WARNING" not in err
    else:
        assert err.count("WARNING") == err.count(f"WARNING: {name}: [Errno 28] No space left") == 1
        lines = [line for line in err.splitlines() if "WARNING" not in line]
        assert lines == said.splitlines()


def test_two_that_fail_together_are_both_left_out(fail, tmp_path):
    """The one that would tell of the other's failure fails with it."""
    fail("console", "text")
    fail("tensorboard", "scalars")
    trackers = _open(tmp_path, "tensorboard")
    _run(trackers, range(1, 10))
    trackers.close()
    assert {step for step, _ in _read_jsonl(tmp_path)} == set(range(1, 10))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "text"])
def test_a_run_ends_where_its_own_record_fails(method, fail, tmp_path):
    """A checkpoint counts the lines of metrics.jsonl as written."""
    fail("jsonl", method)
    with (
        pytest.raises(OSError, match="No space left"),
        contextlib.closing(_open(tmp_path, "jsonl")) as trackers,
    ):
        _run(trackers, range(1, 10))


@pytest.mark.parametrize("name", MEMBERS)
def test_no_network_and_no_secret(name, tmp_path, monkeypatch, capsys):
    secrets = {
        "HF_TOKEN": "hf_0123456789abcdef",
        "WANDB_API_KEY": "wandb0123456789abcdef",
        "HTTPS_PROXY": "http://someone:0123456789abcdef@127.0.0.1:9",
    }
    for variable, value in secrets.items():
        monkeypatch.setenv(variable, value)

    def refuse(*args, **kwargs):
        raise OSError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    trackers = _open(tmp_path, name)
    _run(trackers, range(1, 10))
    trackers.close()
    err = capsys.readouterr().err
    assert "WARNING" not in err
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert written and b"0123456789abcdef" not in written + err.encode()


ELSEWHERE = """
import json
from flaxbert.track import Tracker

class Elsewhere(Tracker):
    def __init__(self, start):
        self.told = {"seed": start.config.seed, "of": start.workdir.root.name, "from": start.step}
        self.file = start.folder / "elsewhere.json"

    def scalars(self, step, epoch, split, values):
        self.told[f"{step} {split}"] = values

    def close(self):
        self.file.write_text(json.dumps(self.told))

make = Elsewhere
"""


def test_a_new_tracker_is_one_file(tmp_path, monkeypatch):
    folder = tmp_path / "added"
    folder.mkdir()
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.setattr(track, "__path__", [*track.__path__, str(folder)])
    monkeypatch.setitem(config._CHOICES, "log.trackers", (*MEMBERS, "elsewhere"))
    trackers = _open(tmp_path / "run", "elsewhere", step=3)
    _run(trackers, range(4, 6))
    trackers.close()
    monkeypatch.delitem(sys.modules, "flaxbert.track.elsewhere")
    told = json.loads((tmp_path / "run" / "elsewhere.json").read_text())
    assert told["seed"] == 0 and told["of"] == "run" and told["from"] == 3
    assert told["5 train"]["loss"] == float(np.float32(0.2))


@pytest.mark.parametrize("names", [["tensorbord"], ["tensorboard", "tensorbord"]])
def test_an_unknown_name_is_refused_with_those_that_there_are(names):
    expected = r"expected one of console, jsonl, tensorboard.*'tensorbord'.*'tensorboard'\?"
    with pytest.raises(ConfigError, match=rf"config\.log\.trackers: {expected}"):
        make_config({"log": {"trackers": names}})
