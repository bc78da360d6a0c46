"""A column of texts that takes no memory: what they are made of lies in a temporary file.

The surprising thing: a column may hold what is no text (a number or null of JSONL, half of a
surrogate pair). It comes back as it came; data/checks.py says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from flaxbert.errors import DataError

# So much stays in memory, and a small data set never touches the disk.
_IN_MEMORY = 8 * 2**20
_AT_ONCE = 4096  # texts that are read together


class Texts(Sequence[Any]):
    """Cells in order, which can be added to at the end; eight bytes of memory each.

    Raises:
      DataError: the folder for temporary files ($TMPDIR) has no room.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - below
        weakref.finalize(self, _close, self._file)
        self._ends = array("q", [0])  # in the file; text i is [ends[i], ends[i + 1])
        self._odd: dict[int, Any] = {}  # what is no string
        for value in values:
            self.append(value)

    def append(self, value: Any) -> None:
        if isinstance(value, str):
            encoded = value.encode("utf-8", "surrogatepass")
        else:
            self._odd[len(self)] = value
            encoded = b""
        try:
            self._file.write(encoded)
        except OSError as error:
            raise _no_room(error) from error
        self._ends.append(self._ends[-1] + len(encoded))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._read(start, max(start, stop))
            return [self[i] for i in range(start, stop, step)]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return self._read(place, place + 1)[0]

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same cells, such as a list."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType] - it can be added to

    def __iter__(self) -> Iterator[Any]:
        return self.part(0, len(self))

    def part(self, start: int, stop: int) -> Iterator[Any]:
        """Yields the cells from `start` to `stop`, which are not all in memory at once."""
        for first in range(start, stop, _AT_ONCE):
            yield from self._read(first, min(first + _AT_ONCE, stop))

    def _read(self, start: int, stop: int) -> list[Any]:
        ends = self._ends[start : stop + 1]
        try:
            self._file.seek(ends[0])  # which writes what was added last
            read = self._file.read(ends[-1] - ends[0])
            self._file.seek(0, 2)  # where `append` goes on
        except OSError as error:
            raise _no_room(error) from error
        texts: list[Any] = [
            read[a - ends[0] : b - ends[0]].decode("utf-8", "surrogatepass")
            for a, b in itertools.pairwise(ends)
        ]
        if self._odd:
            for index in self._odd.keys() & range(start, stop):
                texts[index - start] = self._odd[index]
        return texts


def _no_room(error: OSError) -> DataError:
    try:
        folder = tempfile.gettempdir()
    except OSError:  # not one of those that Python tries
        return DataError(
            "there is no folder for temporary files in which texts can be kept. Set TMPDIR to one."
        )
    return DataError(
        f"{folder}: cannot keep texts there: {error.strerror}. Make room, or set TMPDIR to a "
        "folder that has some."
    )


def _close(file: Any) -> None:
    with contextlib.suppress(OSError):  # what could not be written has been told
        file.close()
