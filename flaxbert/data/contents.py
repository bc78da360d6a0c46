"""What a file really is, by its first bytes, where its name says something else."""

from __future__ import annotations

import re

from flaxbert.errors import DataError

POINTER = rb"version https://git-lfs"
HEAD = 512  # bytes that tell what a file is

# How a file starts, what it is, and what to do. A header or a text may start with the letters of a
# name, so bytes that no text has follow them here.
_FILES = (
    (POINTER, "a git-lfs pointer, which stands for the file", "Fetch the file: git lfs pull"),
    (rb"PAR1[\0-\x08\x0e-\x1f]", "a Parquet file", "Name it .parquet"),
    (rb"ARROW1\0|\xff\xff\xff\xff", "an Arrow file", "Name it .arrow"),
    (rb"FEA1\0", "a Feather file of version 1", "Write it as Parquet"),
    (rb"\x1f\x8b", "compressed by gzip", "Unpack it: gunzip"),
    (rb"BZh[1-9]1AY&SY", "compressed by bzip2", "Unpack it: bunzip2"),
    (rb"\xfd7zXZ\0", "compressed by xz", "Unpack it: unxz"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", "Unpack it: unzstd"),
    (rb"\x04\x22\x4d\x18", "compressed by lz4", "Unpack it: unlz4"),
    (rb"PK\x03\x04", "a zip archive or an Excel workbook",
     "Unpack it: unzip; or save the sheet as CSV UTF-8"),
    (rb"\xd0\xcf\x11\xe0", "an Excel workbook or Word document", "Save it as CSV UTF-8"),
    (rb"7z\xbc\xaf|Rar!\x1a", "a 7z or RAR archive", "Unpack it"),
    (rb".{257}ustar(\0|  \0)", "a tar archive", "Unpack it: tar -xf"),
    (rb"%PDF-[0-9]\.[0-9] ?[\r\n]", "a PDF document", "Write its texts as rows of CSV or JSONL"),
    (rb"\{\\rtf", "a document in Rich Text", "Save it as plain text in UTF-8"),
    (rb"SQLite format 3\0", "an SQLite database",
     "Export the table: sqlite3 -header -csv FILE 'select * from TABLE' > NEW.csv"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which may run code and is not read",
     "Write its rows as CSV, JSONL or Parquet"),
    (rb"\x93NUMPY|\x89HDF\r\n", "a NumPy or HDF5 file", "Write its rows as CSV, JSONL or Parquet"),
)  # fmt: skip

# The same for text with another structure than the suffix of its file says.
_TEXTS = (
    (r"(?i)<(!doctype\s+html|html)\b", "an HTML page, perhaps an error page",
     "Download the file itself"),
    (r"(?i)<\?xml\s", "XML", "Write its rows as CSV or JSONL"),
    (r"\[\s*(\{|$)", "one JSON array",
     "Write one object a line, for example: jq -c '.[]' OLD > NEW.jsonl"),
    (r'\{\s*"', "JSON", "Write one object a line, and name the file .jsonl"),
)  # fmt: skip


def refuse_files(source: str, head: bytes, expected: str) -> None:
    """Raises DataError if the first bytes of a file are those of another kind than `expected`."""
    for start, what, fix in _FILES:
        if re.match(start, head, re.DOTALL):
            raise DataError(f"{source}: is {what}. Expected {expected}. {fix}.")


def refuse_texts(source: str, line: str, expected: str) -> None:
    """Raises DataError if the first line of a text file is that of another structure."""
    for start, what, fix in _TEXTS:
        if re.match(start, line.strip()):
            raise DataError(f"{source}: is {what}. Expected {expected}. {fix}.")
