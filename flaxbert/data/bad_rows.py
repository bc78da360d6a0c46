"""Rows that cannot be used: the file is refused, or the rows are left out and counted.

`on_bad_row` is "error" or "skip", as config.data.on_bad_row. A message names up to 20 rows, so that
a file can be repaired at once and not line by line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flaxbert.data.rows import NAMED, Rows, list_lines, shown
from flaxbert.errors import DataError


class BadRowError(DataError):
    """A row that cannot be used, where the file as a whole can: it may be left out."""


class BadRows:
    """Lines of a file that cannot be read as rows, and what else a user should know of it."""

    def __init__(self, on_bad_row: str = "error") -> None:
        self._skip = on_bad_row == "skip"
        self.skipped: dict[str, list[int]] = {}
        self.notes: list[str] = []

    def add(self, source: str, line: int, what: str, fix: str, *, why: str) -> None:
        """Raises a BadRowError with place and reason, or notes the line under the reason `why`."""
        if not self._skip:
            raise BadRowError(f"{source}:{line}: {what}. {fix}")
        self.skipped.setdefault(why, []).append(line)

    def note(self, text: str) -> None:
        """Notes how a file is read that is not as its suffix says."""
        self.notes.append(text)

    def take(self, last: float) -> dict[str, list[int]]:
        """Returns the lines up to `last` that were not returned before."""
        taken = {why: [n for n in lines if n <= last] for why, lines in self.skipped.items()}
        rest = {why: [n for n in lines if n > last] for why, lines in self.skipped.items()}
        self.skipped = {why: lines for why, lines in rest.items() if lines}
        return {why: lines for why, lines in taken.items() if lines}


class Sieve:
    """Rows under checks: the first failed check refuses the file, or the rows are left out."""

    def __init__(self, rows: Rows, on_bad_row: str) -> None:
        self.rows = rows
        self._skip = on_bad_row == "skip"
        self._aside: dict[int, str] = {}  # row: why

    def refuse(self, offenders: Iterable[int], what: str, fix: str, got: str = "") -> None:
        """Raises a BadRowError that names up to 20 offenders, or leaves them out."""
        found = [i for i in offenders if i not in self._aside]
        if not found:
            return
        if self._skip:
            self._aside.update(dict.fromkeys(found, what))
            return
        lines = self.rows.lines
        others = list_lines([lines[i] for i in found[1:]], NAMED - 1)
        also = f" Also {others}." if len(found) > 1 else ""
        raise BadRowError(f"{self.rows.where(found[0])}: {what}{got}.{also} {fix}")

    def refuse_labels(self, offenders: list[int], what: str, fix: str) -> None:
        """As `refuse`; the message shows the first offender's label."""
        assert self.rows.targets is not None
        got = f" (got {shown(self.rows.targets[offenders[0]])})" if offenders else ""
        self.refuse(offenders, what, fix, got)

    def kept(self) -> Sequence[int]:
        every = range(len(self.rows))
        return [i for i in every if i not in self._aside] if self._aside else every

    def left(self) -> Rows:
        return self.rows.without(self._aside) if self._aside else self.rows


def where(flags: Iterable[bool]) -> list[int]:
    """Returns the indices of the rows that are flagged."""
    return [index for index, flag in enumerate(flags) if flag]
