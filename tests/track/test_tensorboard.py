"""TensorBoard reads the event files, soon after the values came."""

from __future__ import annotations

import errno
import os
import types

import pytest

from flaxbert.track import tensorboard
from flaxbert.track.tensorboard import TensorBoard


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    """With a thread and a queue behind it this waited for ever."""

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tracker = TensorBoard(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tensorboard.RecordWriter, "write", full)
        with pytest.raises(OSError, match="No space left on device") as raised:
            tracker.scalars(1, 0.5, "train", {"loss": 1.0})
    assert raised.value.filename.startswith(str(tmp_path / "events.out."))
    tracker.close()


def _events(folder):
    """Returns what TensorBoard's own reader finds in the one event file, as it stands now."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    [path] = folder.glob("events.out.tfevents.*")
    return list(EventFileLoader(str(path)).Load())


def test_events_show_after_half_a_minute_without_a_save(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=0.0, time=tensorboard.time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(tensorboard, "time", clock)
    tracker = TensorBoard(tmp_path, 4)
    shown = {}
    for step, clock.now in ((5, 10.0), (6, 29.0), (7, 31.0), (8, 60.0), (9, 62.0)):
        tracker.scalars(step, 0.5, "train", {"loss": 1.0})
        shown[step] = [event.step for event in _events(tmp_path) if event.HasField("summary")]
    tracker.close()
    assert shown == {5: [], 6: [], 7: [5, 6, 7], 8: [5, 6, 7], 9: [5, 6, 7, 8, 9]}


def test_an_event_file_says_once_what_it_is_and_where_it_begins(tmp_path):
    tracker = TensorBoard(tmp_path, 4)
    tracker.scalars(5, 0.5, "train", {"loss": 1.0})
    tracker.close()
    version, start, scalar = _events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START and start.step == 5
    assert scalar.summary.value[0].tag == "train/loss"
