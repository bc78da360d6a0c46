"""How far prediction and evaluation are, on standard error: a bar, or a line now and then.

The surprising thing: without a terminal there is no bar, which would fill a log file.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

_EVERY = 30.0  # seconds between lines where there is no terminal


class Meter:
    """Counts sequences; call it with how many are done. Silent if
    HF_HUB_DISABLE_PROGRESS_BARS is on."""

    def __init__(self, total: int | None = None, unit: str = "rows") -> None:
        from tqdm import tqdm

        off = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in (
            "1",
            "ON",
            "YES",
            "TRUE",
        )
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=f" {unit}", disable=off or not terminal, file=sys.stderr)
        self._lines = not off and not terminal
        self._total, self._unit = total, unit
        self._done = 0
        self._start = self._told = time.monotonic()

    def __call__(self, count: int) -> None:
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._lines and now - self._told >= _EVERY:
            self._told = now
            of = f" of {self._total}" if self._total else ""
            rate = self._done / (now - self._start)
            print(f"{self._done}{of} {self._unit}, {rate:.0f}/s", file=sys.stderr, flush=True)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
