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

from tensorboardX import SummaryWriter
from tqdm import tqdm

from flaxbert.storage.store import store_for
from flaxbert.storage.workdir import write_atomically
from flaxbert.terminal import printable, say


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
        self._file = (folder / metrics.name).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=step + 1, write_to_disk=True)
        shown = sys.stderr.isatty() if bar is None else bar
        self._bar = tqdm(
            total=total, initial=step, unit="update", disable=not shown, file=sys.stderr
        )

    def scalars(self, step: int, epoch: float, split: str, values: dict[str, Any]) -> None:
        """Appends a line per value: step, epoch, split, name, value, time (seconds since 1970)."""
        now = time.time()
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
            self._file.write(json.dumps(line) + "\n")
            self._board.add_scalar(f"{split}/{name}", number, step, now)
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
        self._file.flush()
        self._board.flush()
        self._spool.push()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # the others close even if one cannot
            stack.callback(self._spool.close)
            stack.callback(self._board.close)
            stack.callback(self._file.close)
            stack.callback(self._bar.close)


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
