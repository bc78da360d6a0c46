"""Files -> lines of UTF-8 text, plain or compressed by gzip, one line in memory at a time."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import re
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flaxbert.data import contents, encodings
from flaxbert.data.rows import near_name
from flaxbert.errors import DataError

STANDARD_INPUT = Path("-")

# Bytes of one row: far more than any text needs. Without a limit a gzip file of a megabyte could
# unpack to a single line that fills the memory.
LONGEST_ROW = 1 << 26

_GZIP = b"\x1f\x8b"
_SAMPLE = 1 << 16  # bytes around one that is not UTF-8, to tell the encoding by


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file; errors of the system, also while reading, become a DataError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(
                f"{path}: is a directory. Name a file. For a data set in a folder set "
                "config.data.dataset."
            )
        if not stat.S_ISREG(mode):
            raise DataError(
                f"{path}: is a pipe or a device. Name a file; only --input=- reads a stream."
            )
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        near = near_name(_siblings(path), path.name)
        raise DataError(f"{path}: there is no such file.{near or ' Check the path.'}") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read: {reason}. Check the path.") from error


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file, compressed by gzip or not, or of standard input ("-") as they
    arrive.

    Only "\\n" ends a line, and is kept. A byte order mark is removed. Raises DataError, with its
    place, for a file that cannot be read or is not UTF-8, a NUL, or a line over `LONGEST_ROW`.
    """
    if path == STANDARD_INPUT:
        yield from _decoded(sys.stdin.buffer, "standard input")
        return
    with open_file(path) as file:
        is_gzip = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if is_gzip or path.suffix.lower() == ".gz":
            yield from _unzipped(file, str(path))
        else:
            yield from _decoded(file, str(path))


def too_long(source: str, line: int) -> DataError:
    return DataError(
        f"{source}:{line}: a row longer than {LONGEST_ROW:,} bytes starts here. Check its line "
        "ends and quotes."
    )


def _unzipped(file: BinaryIO, source: str) -> Iterator[str]:
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
            yield from _decoded(unzipped, source)
    except EOFError as error:
        raise DataError(
            f"{source}: the gzip file ends too early. Copy or download it again (gzip -t checks "
            "a file)."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{source}: is not a valid gzip file: {error}. Copy or download it again, or take "
            ".gz off its name if it is not compressed."
        ) from error


def _decoded(file: BinaryIO | gzip.GzipFile, source: str) -> Iterator[str]:
    offset = number = 0  # bytes and lines read so far
    while line := file.readline(LONGEST_ROW + 1):
        number += 1
        if number == 1:
            contents.refuse_files(source, line[: contents.HEAD], "text in UTF-8")
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                fix = encodings.iconv("UTF-16", source)
                raise DataError(f"{source}: is UTF-16. Save it as UTF-8, for example: {fix}")
        if len(line) > LONGEST_ROW:
            raise too_long(source, number)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            place = offset + error.start
            sample = _around(line, error.start, None if file is sys.stdin.buffer else file)
            raise DataError(
                f"{source}:{number}: byte {place} (0x{line[error.start]:02x}) is not UTF-8. "
                + encodings.advice(sample, source)
            ) from error
        if "\0" in text:
            raise _nul(text, source, number)
        # Not by "utf-8-sig": that codec counts the place of a bad byte from behind the mark.
        yield text.removeprefix("\ufeff") if number == 1 else text
        offset += len(line)


def _around(line: bytes, place: int, file: BinaryIO | gzip.GzipFile | None) -> bytes:
    """Returns bytes around a place in a line, and of the lines behind it if there is a file.

    There is none for standard input: somebody may be typing it.
    """
    start = max(0, place - _SAMPLE // 2)
    if start:  # not in the middle of a character: these bytes are never a part of one
        found = re.search(rb"[\t ,;\"]", line[start:place])
        start += found.end() if found else 0
    sample = line[start : start + _SAMPLE]
    return sample if file is None else sample + file.read(_SAMPLE - len(sample))


def _nul(text: str, source: str, line: int) -> DataError:
    """Returns the error for NUL characters, which no text has and at which many tools stop."""
    if 4 * text.count("\0") > len(text):  # every other byte, in Latin text
        order = "BE" if text.startswith("\0") else "LE"
        return DataError(
            f"{source}:{line}: contains NUL characters, as UTF-16 without a mark does. Remove it "
            f"by: {encodings.iconv(f'UTF-16{order}', source)}"
        )
    return DataError(f"{source}:{line}: contains a NUL character. Remove it.")


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
