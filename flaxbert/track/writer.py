"""What a run tells: metrics.jsonl, TensorBoard event files, and the terminal.

The surprising thing: on a resume metrics.jsonl is cut back to the checkpoint's step, so the file of
an interrupted run equals that of an uninterrupted one, times apart.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path, PurePath
from typing import Any

from tqdm import tqdm

from flaxbert.shell.console import printable, say
from flaxbert.shell.library_output import left_out
from flaxbert.storage.store import naming, store_for
from flaxbert.storage.workdir import write_atomically

# What it could read from besides NumPy, and write to besides files: most of a start's imports.
with left_out("torch", "google.cloud.storage", "boto3"):
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import (  # made from protobuf as they are imported
        Event,  # pyright: ignore[reportAttributeAccessIssue]
        SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
    )

# As often as the writers of PyTorch and TensorFlow, so that a TensorBoard follows a long stretch
# between two saves.
_FLUSH_SECONDS = 30.0


class Writer:
    """Writes metrics and progress.

    A resume starts after update `step`, and `evaluated` was the last evaluation before it.
    """

    def __init__(
        self,
        metrics: PurePath,
        *,
        step: int,
        total: int,
        evaluated: int = 0,
        bar: bool | None = None,
    ) -> None:
        self._spool = store_for(metrics).spool(metrics)
        folder = self._spool.directory
        cut_back(folder / metrics.name, step, evaluated)
        self._metrics = folder / metrics.name
        self._file = self._metrics.open("a", encoding="utf-8")
        self._board = _Board(folder, step + 1)
        shown = sys.stderr.isatty() if bar is None else bar
        self._bar = tqdm(
            total=total, initial=step, unit="update", disable=not shown, file=sys.stderr
        )

    def scalars(self, step: int, epoch: float, split: str, values: dict[str, Any]) -> None:
        """Appends a line per value: step, epoch, split, name, value, time (seconds since 1970)."""
        now = time.time()
        lines = []
        for name, value in values.items():
            number = float(value)
            line = {
                "step": step,
                "epoch": epoch,
                "split": split,
                "name": name,
                "value": number if math.isfinite(number) else None,
                "time": now,
            }
            lines.append(json.dumps(line) + "\n")
            self._board.scalar(f"{split}/{name}", number, step, now)
        with naming(self._metrics):
            self._file.write("".join(lines))
            self._file.flush()
        if split == "validation":  # it took long, and somebody may be watching from elsewhere
            self.sync()

    def line(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._bar.disable:
            say(text)
        else:
            self._bar.write(printable(text), file=sys.stderr)

    def advance(self) -> None:
        self._bar.update(1)

    def sync(self) -> None:
        """Makes all lines durable: called before a checkpoint that counts them as written."""
        with naming(self._metrics):
            self._file.flush()
        self._board.flush()
        self._spool.push()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # the others close even if one cannot
            stack.callback(self._spool.close)
            stack.enter_context(naming(self._metrics))
            stack.callback(self._file.close)
            stack.callback(self._board.close)
            stack.callback(self._bar.close)


class Silent(Writer):
    """What the other processes of a run write: nothing."""

    def __init__(self) -> None:
        pass

    def scalars(self, step: int, epoch: float, split: str, values: dict[str, Any]) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def advance(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Board:
    """A TensorBoard event file, written where it is told and flushed as it is written.

    tensorboardX's own writer has a thread for it. A full disk ends that thread, and the run then
    waits for it for ever. A run in a bucket shows its events at saves and evaluations only: an
    object cannot grow, so every upload puts the whole file again.
    """

    def __init__(self, folder: Path, begins: int) -> None:
        """Starts a file that replaces the events of step `begins` and later in earlier ones."""
        with naming(folder):
            self._writer = EventsWriter(str(folder / "events"))
        self._path = folder / self._writer._file_name
        self._flushed = time.monotonic()
        start = SessionLog(status=SessionLog.START)
        self._write(Event(session_log=start), begins, time.time())

    def scalar(self, tag: str, value: float, step: int, now: float) -> None:
        self._write(Event(summary=summary.scalar(tag, value)), step, now)

    def flush(self) -> None:
        with naming(self._path):
            self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        with naming(self._path):
            self._writer.close()

    def _write(self, event: Event, step: int, now: float) -> None:
        event.step, event.wall_time = step, now
        with naming(self._path):
            self._writer.write_event(event)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()


def cut_back(metrics: Path, step: int, evaluated: int = 0) -> None:
    """Drops the lines of metrics.jsonl after `step`, and one that was only half written.

    Validation lines go after `evaluated` already: an evaluation at `step` that the checkpoint has
    not seen runs again.
    """
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            last = evaluated if values["split"] == "validation" else step
            if values["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_atomically(metrics, "".join(kept).encode())
