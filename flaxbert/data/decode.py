"""Bytes -> lines of text: opened, unpacked and decoded in blocks, so that memory stays flat.

The surprising thing: a row has a longest length. Without it one gzip file of a megabyte could
unpack to a single line that fills the memory.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from flaxbert.data.rows import near_name
from flaxbert.errors import DataError

STANDARD_INPUT = "standard input"

# Characters of one row: far above any text, far below any memory.
LONGEST_ROW = 1 << 26

_BLOCK = 1 << 20  # bytes

_KINDS = {
    stat.S_ISDIR: "a directory",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file; what the system refuses, now or while it is read, is a DataError."""
    try:
        mode = path.stat().st_mode
        for is_kind, kind in _KINDS.items():
            if is_kind(mode):
                also = "" if stat.S_ISDIR(mode) else " Only --input=- reads a stream."
                raise DataError(f"{path}: is {kind}. Name a file.{also}")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        near = near_name([entry.name for entry in _siblings(path)], path.name)
        raise DataError(f"{path}: there is no such file.{near or ' Check the path.'}") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read: {reason}. Check the path.") from error


def read_lines(path: Path, *, carriage_returns: bool) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, or of a .gz of one, each with its end.

    Args:
      carriage_returns: whether "\\r" and "\\r\\n" end a line too; "\\n" always does.

    Raises:
      DataError: missing, not a regular file, unreadable, a damaged .gz, not UTF-8, a NUL
        character, or a line beyond every measure. Names byte or line.
    """
    with open_file(path) as file:
        blocks = _unzipped(file, str(path)) if path.suffix.lower() == ".gz" else _blocks(file)
        yield from _lines(_decoded(blocks, str(path)), str(path), carriage_returns)


def read_standard_input() -> Iterator[str]:
    """Yields the lines of standard input as they come; see `read_lines`."""
    stream: Any = sys.stdin.buffer
    blocks = iter(lambda: stream.read1(_BLOCK), b"")  # what is there, not only whole blocks
    yield from _lines(_decoded(blocks, STANDARD_INPUT), STANDARD_INPUT, False)


def too_long(source: str, line: int) -> DataError:
    return DataError(
        f"{source}:{line}: a row longer than {LONGEST_ROW >> 20} million characters starts here. "
        "Check its line ends and quotes."
    )


def _blocks(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK), b"")


def _unzipped(file: BinaryIO, source: str) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
            yield from _blocks(unzipped)
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


def _decoded(blocks: Iterator[bytes], source: str) -> Iterator[str]:
    """Decodes UTF-8, with or without a byte order mark, and refuses NUL characters, which no text
    has and many tools stop at."""
    # Not "utf-8-sig": that codec counts the place of a bad byte from after the mark.
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1  # of the block's first byte
    head = True
    for block in _with_whole_head(blocks):
        if head and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(
                f"{source}: is UTF-16. Save it as UTF-8, for example: "
                f"iconv -f UTF-16 -t UTF-8 {source} > NEW"
            )
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, source, offset - len(pending), line) from error
        if "\0" in text:
            raise _nul(text, source, line)
        offset += len(block)
        line += text.count("\n")
        yield text.removeprefix("\ufeff") if head else text
        head = False
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(error, source, offset - len(error.object), line) from error


def _not_utf8(error: UnicodeDecodeError, source: str, offset: int, line: int) -> DataError:
    """Of an error in bytes of which the first is byte `offset` of the source, in `line`."""
    line += error.object.count(b"\n", 0, error.start)
    return DataError(
        f"{source}:{line}: byte {offset + error.start} (0x{error.object[error.start]:02x}) is not "
        "UTF-8. Save the file as UTF-8, for example from Windows-1252: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {source} > NEW"
    )


def _nul(text: str, source: str, line: int) -> DataError:
    place = text.index("\0")
    line += text.count("\n", 0, place)
    if 4 * text.count("\0") > len(text):  # every other byte, in Latin text
        return DataError(
            f"{source}:{line}: contains NUL characters, as UTF-16 without a mark does. Remove it "
            f"by: iconv -f UTF-16LE -t UTF-8 {source} > NEW"
        )
    return DataError(f"{source}:{line}: contains a NUL character. Remove it.")


def _with_whole_head(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields the same bytes, at first enough for a byte order mark; a pipe may give less."""
    first = b""
    for block in blocks:
        first += block
        if len(first) >= len(codecs.BOM_UTF8):
            break
    yield first
    yield from blocks


def _lines(blocks: Iterator[str], source: str, carriage_returns: bool) -> Iterator[str]:
    ends = ("\n", "\r") if carriage_returns else ("\n",)
    newline = "" if carriage_returns else "\n"
    parts: list[str] = []  # of a line that has not ended yet
    size = number = 0
    held = ""  # "\r" at the end of a block: "\n" may follow

    def whole(part: str) -> str:
        nonlocal size
        line = "".join((*parts, part))
        parts.clear()
        size = 0
        return line

    for block in blocks:
        text, held = held + block, ""
        if carriage_returns and text.endswith("\r"):
            text, held = text[:-1], "\r"
        for part in io.StringIO(text, newline=newline):
            if part.endswith(ends):
                number += 1
                yield whole(part) if parts else part
                continue
            parts.append(part)
            size += len(part)
        if size > LONGEST_ROW:
            raise too_long(source, number + 1)
    if parts or held:
        yield whole(held)


def _siblings(path: Path) -> list[Path]:
    try:
        return list(path.parent.iterdir())
    except OSError:
        return []
