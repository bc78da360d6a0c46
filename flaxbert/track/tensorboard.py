"""TensorBoard event files, written in the training thread and flushed regularly.

Note: tensorboardX's own writers use a thread. A full disk ends that thread, and the run would then
wait for it forever.

A run in a bucket shows its events only after saves and evaluations: an object cannot grow, so every
upload writes the whole file again.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxbert.shell.library_output import left_out
from flaxbert.storage.interface import naming
from flaxbert.track import Start, Tracker

# Optional packages that it would import and that are not used here: 0.3 s of each start if Google's
# client is installed, 1 to 2 s if PyTorch is.
with left_out("torch", "google.cloud.storage", "boto3"):
    from tensorboardX import RecordWriter
    from tensorboardX.proto import event_pb2, summary_pb2

# protobuf creates these classes at import.
Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]

# Like the writers of PyTorch and TensorFlow, so that TensorBoard shows values between two saves.
_FLUSH_SECONDS = 30.0


class TensorBoard(Tracker):
    def __init__(self, folder: Path, step: int = 0) -> None:
        """Starts a file that replaces the events after `step` in earlier ones."""
        now = time.time()
        # In microseconds: a second start may come within a second, and names must sort by time.
        self._path = folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        with naming(self._path):
            self._file = RecordWriter(str(self._path))
        self._flushed = time.monotonic()
        self._write(0, now, file_version="brain.Event:2")
        self._write(step + 1, now, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        now = time.time()
        scalars = [{"tag": f"{split}/{name}", "simple_value": x} for name, x in values.items()]
        self._write(step, now, summary=Summary(value=scalars))
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.sync()

    def sync(self) -> None:
        with naming(self._path):
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # closes even if the flush fails
            stack.enter_context(naming(self._path))
            stack.callback(self._file.close)
            self._file.flush()

    def _write(self, step: int, now: float, **what: Any) -> None:
        with naming(self._path):
            self._file.write(Event(step=step, wall_time=now, **what).SerializeToString())


def make(start: Start) -> TensorBoard:
    return TensorBoard(start.folder, start.step)
