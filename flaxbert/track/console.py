"""Lines on standard error, above a progress bar if that is a terminal."""

from __future__ import annotations

import sys

from tqdm import tqdm

from flaxbert.shell.console import printable, say
from flaxbert.track import Start, Tracker


class Console(Tracker):
    def __init__(self, total: int, step: int = 0, *, bar: bool | None = None) -> None:
        """Shows a bar if standard error is a terminal, or as `bar` says."""
        shown = sys.stderr.isatty() if bar is None else bar
        self._bar = tqdm(
            total=total, initial=step, unit="update", disable=not shown, file=sys.stderr
        )

    def text(self, line: str) -> None:
        if self._bar.disable:
            say(line)
        else:
            self._bar.write(printable(line), file=sys.stderr)

    def advance(self) -> None:
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


def make(start: Start) -> Console:
    return Console(start.total, start.step)
