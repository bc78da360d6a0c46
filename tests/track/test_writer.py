"""metrics.jsonl is cut back on a resume, whatever state a crash left it in."""

from __future__ import annotations

import errno
import json
import os
import types

import pytest

from flaxbert.track import writer as writing
from flaxbert.track.writer import Writer, cut_back


def _line(step: int, split: str = "train") -> str:
    return json.dumps({"step": step, "split": split, "name": "loss", "value": 1.0}) + "\n"


@pytest.mark.parametrize("tail", ["", '{"step": 3, "na', "\n", "null\n", '{"name": "x"}\n'])
def test_lines_after_the_checkpoint_go(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1) + _line(2) + _line(3) + _line(4) + tail)
    cut_back(path, 2)
    assert path.read_text() == _line(1) + _line(2)


def test_an_evaluation_that_the_checkpoint_has_not_seen_runs_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(2) + _line(2, "validation") + _line(4) + _line(4, "validation"))
    cut_back(path, 4, evaluated=2)
    assert path.read_text() == _line(2) + _line(2, "validation") + _line(4)


def test_nothing_to_cut(tmp_path):
    cut_back(tmp_path / "metrics.jsonl", 5)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_values_that_are_not_finite_are_null(tmp_path):
    writer = Writer(tmp_path / "metrics.jsonl", step=0, total=2)
    writer.scalars(1, 0.5, "train", {"loss": float("nan"), "rate": 2})
    writer.sync()
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["name"], line["value"]) for line in lines] == [("loss", None), ("rate", 2.0)]


def test_a_full_disk_ends_the_writing_of_events_and_names_the_file(tmp_path, monkeypatch):
    """With a thread and a queue behind it this waited for ever."""

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = Writer(tmp_path / "metrics.jsonl", step=0, total=2)
    with monkeypatch.context() as patched:
        patched.setattr(writer._board._writer._py_recordio_writer, "_writer", Full())
        with pytest.raises(OSError, match="No space left on device") as raised:
            writer.scalars(1, 0.5, "train", {"loss": 1.0})
    assert raised.value.filename.startswith(str(tmp_path / "events.out."))
    writer.close()


def _events(folder):
    """Returns what TensorBoard's own reader finds in the one event file, as it stands now."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    [path] = folder.glob("events.out.tfevents.*")
    return list(EventFileLoader(str(path)).Load())


def test_events_show_after_half_a_minute_without_a_save(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=0.0, time=writing.time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(writing, "time", clock)
    writer = Writer(tmp_path / "metrics.jsonl", step=4, total=9)
    shown = {}
    for step, clock.now in ((5, 10.0), (6, 29.0), (7, 31.0), (8, 60.0), (9, 62.0)):
        writer.scalars(step, 0.5, "train", {"loss": 1.0})
        shown[step] = [event.step for event in _events(tmp_path) if event.HasField("summary")]
    writer.close()
    assert shown == {5: [], 6: [], 7: [5, 6, 7], 8: [5, 6, 7], 9: [5, 6, 7, 8, 9]}


def test_an_event_file_says_once_what_it_is_and_where_it_begins(tmp_path):
    writer = Writer(tmp_path / "metrics.jsonl", step=4, total=9)
    writer.scalars(5, 0.5, "train", {"loss": 1.0})
    writer.close()
    version, start, scalar = _events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START and start.step == 5
    assert scalar.summary.value[0].tag == "train/loss"


def test_a_bar_on_a_terminal_and_plain_lines_elsewhere(tmp_path, capsys):
    writer = Writer(tmp_path / "metrics.jsonl", step=0, total=2, bar=True)
    writer.line("update 1")
    writer.advance()
    writer.close()
    shown = capsys.readouterr().err
    assert "update 1" in shown and "/2" in shown
    writer = Writer(tmp_path / "metrics.jsonl", step=0, total=2, bar=False)
    writer.line("update 1")
    writer.advance()
    writer.close()
    assert capsys.readouterr().err == "update 1\n"
