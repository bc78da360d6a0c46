"""What a run tells: metrics.jsonl, TensorBoard event files, and the terminal.

The surprising thing: on a resume metrics.jsonl is cut back to the checkpoint's step, so the file of
an interrupted run equals that of an uninterrupted one, times apart.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from flaxbert.storage.workdir import write_atomically


class Writer:
    """Writes metrics and progress; `step` is the update that a resume starts after."""

    def __init__(self, metrics: Path, *, step: int, total: int, bar: bool | None = None) -> None:
        cut_back(metrics, step)
        self._file = metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(metrics.parent), purge_step=step + 1 if step else None, write_to_disk=True
        )
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

    def line(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._bar.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def advance(self) -> None:
        self._bar.update(1)

    def sync(self) -> None:
        """Makes all lines durable: called before a checkpoint that counts them as written."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()


def cut_back(metrics: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step`, and one that was only half written."""
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(metrics, "".join(kept).encode())
