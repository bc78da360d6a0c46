"""metrics.jsonl, the run's own record of its values.

Note: a resume cuts it back to the checkpoint's step, so the file of an interrupted run equals that
of an uninterrupted one, except for times.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from flaxbert.storage.interface import Spool, naming
from flaxbert.storage.workdir import write_atomically
from flaxbert.track import Start, Tracker


class Jsonl(Tracker):
    def __init__(self, path: Path, spool: Spool, step: int = 0, evaluated: int = 0) -> None:
        """Continues after update `step`; the last evaluation was after update `evaluated`."""
        cut_back(path, step, evaluated)
        self._spool = spool
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Appends a line per value: step, epoch, split, name, value, time (seconds since 1970)."""
        now = time.time()
        lines = []
        for name, value in values.items():
            line = {
                "step": step,
                "epoch": epoch,
                "split": split,
                "name": name,
                "value": value if math.isfinite(value) else None,
                "time": now,
            }
            lines.append(json.dumps(line) + "\n")
        with naming(self._path):
            self._file.write("".join(lines))
            self._file.flush()

    def sync(self) -> None:
        with naming(self._path):
            self._file.flush()
        self._spool.push()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # the spool closes even if the file cannot
            stack.callback(self._spool.close)
            stack.enter_context(naming(self._path))
            self._file.close()


def make(start: Start) -> Jsonl:
    path = start.folder / start.workdir.metrics.name
    return Jsonl(path, start.spool, start.step, start.evaluated)


def cut_back(metrics: Path, step: int, evaluated: int = 0) -> None:
    """Drops the lines of metrics.jsonl after `step`, and an incomplete one.

    Validation lines after `evaluated` are dropped too: an evaluation at `step` that the checkpoint
    does not include runs again.
    """
    if not metrics.is_file():
        metrics.unlink(missing_ok=True)  # a link to nothing, which would be written through
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
