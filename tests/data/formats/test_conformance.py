"""What every data format does: rows with their lines, bad input told with its place, flat memory.

A new format is tested here by its sample in samples.py.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import pickle
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data import decode, formats
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.formats import Row, jsonl
from flaxbert.errors import DataError
from tests.data.formats.samples import ALIASES, SAMPLES

TEXTS = ["good text", "other text", "third text"]
SUFFIXES = list(SAMPLES)
TEXT = [suffix for suffix in SUFFIXES if formats.by_suffix()[suffix].is_text]
COLUMNS = [suffix for suffix in SUFFIXES if formats.by_suffix()[suffix].has_columns]
NOT_UTF8 = "is not UTF-8. Save the file as UTF-8, for example"


def rows_of(path: Path, column: str = "") -> Iterator[Row]:
    return formats.read_rows(path, [column or SAMPLES[formats.suffix_of(path)].column], BadRows())


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path, column: str = "") -> str:
    """Returns the message of the DataError, which names the file first and never all of it."""
    with pytest.raises(DataError) as caught:
        list(rows_of(path, column))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith(f"{path}:") and len(message) < 1000
    return message


def check(path: Path, texts: list[str]) -> None:
    """Asserts that the file has these rows."""
    sample = SAMPLES[formats.suffix_of(path)]
    rows = list(rows_of(path))
    assert [row.cells for row in rows] == [{sample.column: sample.cell(text)} for text in texts]
    assert [row.line for row in rows] == sample.lines(len(texts))


def test_every_format_has_a_sample_and_a_place_in_the_documentation():
    known = formats.by_suffix()
    assert SAMPLES.keys() | ALIASES.keys() == known.keys()
    assert all(known[alias] is known[suffix] for alias, suffix in ALIASES.items())
    page = Path(__file__).parents[3].joinpath("docs", "own_data.md").read_text("utf-8")
    assert [suffix for suffix in known if f"`{suffix}`" not in page] == []


# --- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_come_with_their_lines(tmp_path, suffix):
    texts = [*TEXTS, "Straße 你好", "\u2028a\x0c \x85b", "NA null"]
    check(written(tmp_path, f"rows{suffix}", SAMPLES[suffix].write(texts)), texts)
    check(written(tmp_path, f"rows{suffix.upper()}", SAMPLES[suffix].write(TEXTS)), TEXTS)


@pytest.mark.parametrize("suffix", TEXT)
def test_ways_to_write_the_same_text(tmp_path, suffix):
    content = SAMPLES[suffix].write(TEXTS)
    ways = {
        "mark": b"\xef\xbb\xbf" + content,
        "CRLF": content.replace(b"\n", b"\r\n"),
        "no last line end": content.rstrip(b"\n"),
    }
    for way, changed in ways.items():
        check(written(tmp_path, f"{way}{suffix}", changed), TEXTS)
    check(written(tmp_path, f"a{suffix}.gz", gzip.compress(content)), TEXTS)
    # Two members end to end are one file, as `cat a.gz b.gz` makes it.
    both = gzip.compress(content[:20]) + gzip.compress(content[20:])
    check(written(tmp_path, f"b{suffix.upper()}.GZ", both), TEXTS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_text_may_be_very_long(tmp_path, suffix):
    texts = ["ö" * 300_000 + " x"]  # the csv module stops at 128 KiB by itself
    check(written(tmp_path, f"rows{suffix}", SAMPLES[suffix].write(texts)), texts)


@pytest.mark.parametrize("suffix", TEXT)
def test_gzip_is_read_whatever_the_name(tmp_path, suffix):
    content = gzip.compress(SAMPLES[suffix].write(TEXTS))
    check(written(tmp_path, f"rows{suffix}", content), TEXTS)
    assert "the gzip file ends too early" in refusal(written(tmp_path, f"a{suffix}", content[:-9]))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file(tmp_path, suffix):
    path = written(tmp_path, f"rows{suffix}", b"")
    if suffix in COLUMNS:
        assert "is empty. Expected" in refusal(path) or "cannot be read" in refusal(path)
    else:
        assert list(rows_of(path)) == []


@pytest.mark.parametrize("suffix", COLUMNS)
def test_a_missing_column(tmp_path, suffix):
    sample = SAMPLES[suffix]
    message = refusal(written(tmp_path, f"rows{suffix}", sample.write(TEXTS)), sample.column + "s")
    assert f"{sample.column + 's'!r}. Did you mean {sample.column!r}?" in message
    assert repr(sample.column) in message.split("s: ")[-1]  # Columns: ... or Keys: ...


@pytest.mark.parametrize("suffix", TEXT)
@pytest.mark.parametrize("marked", [False, True])
def test_what_is_not_utf8_is_named_by_byte_and_line(tmp_path, suffix, marked):
    sample = SAMPLES[suffix]
    content = b"\xef\xbb\xbf" * marked + sample.write(TEXTS)
    for bad in (b"\xe9", b"\xed\xa0\x80"):  # Latin-1; half of a surrogate pair
        path = written(tmp_path, f"rows{suffix}", content.replace(b"other", bad))
        place = content.index(b"other")
        assert f":{sample.lines(2)[1]}: byte {place} (0x{bad[0]:02x}) {NOT_UTF8}" in refusal(path)


@pytest.mark.parametrize(
    ("words", "codec", "advised"),
    [("剧情不错，演员也好。", "gbk", "-f GB18030"), ("größer, ", "cp1252", "-f WINDOWS-1252")],
)
def test_the_encoding_of_a_very_long_line_is_told_soon(tmp_path, words, codec, advised):
    """By what stands near the place, before and behind it. The whole line would take a minute."""
    for before in ("good film, " * 100_000, ""):
        text = f"{before}{words * 300_000}\n".encode(codec)
        start = time.process_time()
        message = refusal(written(tmp_path, "a.txt", text))
        place = len(before) + next(i for i, letter in enumerate(words) if letter > "\x7f")
        assert f"a.txt:1: byte {place} " in message and advised in message
        assert time.process_time() - start < 3
    text = (words * 9000).encode() + b"\xff" + (words * 9000).encode()
    assert "Other characters near it are UTF-8" in refusal(written(tmp_path, "a.txt", text))


@pytest.mark.parametrize("suffix", TEXT)
def test_other_encodings_and_nul(tmp_path, suffix):
    content = SAMPLES[suffix].write(TEXTS)
    for encoding, said in (
        ("utf-16", ": is UTF-16. Save it as UTF-8"),
        ("utf-16-le", ":1: contains NUL characters, as UTF-16 without a mark does"),
    ):
        path = written(tmp_path, f"rows{suffix}", content.decode().encode(encoding))
        assert said in refusal(path)
    path = written(tmp_path, f"rows{suffix}", content.replace(b"third", b"th\0rd"))
    line = SAMPLES[suffix].lines(3)[2]
    assert f":{line}: contains a NUL character. Remove it." in refusal(path)


@pytest.mark.parametrize("suffix", TEXT)
def test_a_row_beyond_every_measure(tmp_path, suffix, monkeypatch):
    """In a small file of gzip, too; of a format that has rows of several lines, in one of those."""
    monkeypatch.setattr(decode, "LONGEST_ROW", 10_000)
    check(written(tmp_path, f"rows{suffix}", SAMPLES[suffix].write(TEXTS * 400)), TEXTS * 400)
    text = "word " * 2500 + "x"
    content = SAMPLES[suffix].write([TEXTS[0], text])
    message = refusal(written(tmp_path, f"rows{suffix}.gz", gzip.compress(content, 1)))
    assert f":{SAMPLES[suffix].lines(2)[1]}: a row longer than 10,000 bytes starts here" in message


@pytest.mark.parametrize("suffix", TEXT)
def test_damaged_gzip_files(tmp_path, suffix):
    content = SAMPLES[suffix].write(TEXTS * 300)
    data = gzip.compress(content)
    for cut in (5, 20, -9, -1):
        message = refusal(written(tmp_path, f"rows{suffix}.gz", data[:cut]))
        assert "the gzip file ends too early. Copy" in message
    for place in (12, 40, -6):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        message = refusal(written(tmp_path, f"rows{suffix}.gz", bytes(changed)))
        assert "is not a valid gzip file" in message or "ends too early" in message
    message = refusal(written(tmp_path, f"rows{suffix}.gz", content))
    assert "is not a valid gzip file" in message and "take .gz off" in message


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in TEXT])
def test_damaged_binary_files(tmp_path, suffix):
    content = SAMPLES[suffix].write(TEXTS)
    for part in (slice(0, 40), slice(40, None), slice(4, None), slice(0, -1)):
        message = refusal(written(tmp_path, f"rows{suffix}", content[part]))
        assert "cannot be read as" in message and "Write or copy it again" in message
    with pytest.raises(DataError, match="is compressed inside; unpack it: gunzip"):
        formats.format_for(tmp_path / f"rows{suffix}.gz")


OTHER_KINDS = {
    # what the message says: how such a file starts
    "is a git-lfs pointer, which stands for the file. Expected": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 9\n"
    ),
    "is compressed by bzip2. Expected": bz2.compress(b"text"),
    "is compressed by xz. Expected": lzma.compress(b"text"),
    "is compressed by zstd. Expected": b"\x28\xb5\x2f\xfd\x04\x00",
    "is a zip archive or an Excel workbook. Expected": b"PK\x03\x04\x14\x00\x06\x00",
    "is an Excel workbook or Word document. Expected": b"\xd0\xcf\x11\xe0\xa1\xb1",
    "is a PDF document. Expected": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "is an SQLite database. Expected": b"SQLite format 3\x00\x10\x00",
    "is a Python pickle, which may run code": pickle.dumps(["text"]),
    "is a Feather file of version 1. Expected": b"FEA1" + bytes(12),
    "is a tar archive. Expected": b"train.csv".ljust(257, b"\0") + b"ustar\x0000",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("said", OTHER_KINDS)
def test_a_file_of_another_kind_is_named(tmp_path, suffix, said):
    assert said in refusal(written(tmp_path, f"rows{suffix}", OTHER_KINDS[said]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_format_under_the_name_of_another(tmp_path, suffix):
    for other in (".parquet", ".arrow"):
        path = written(tmp_path, f"rows{suffix}", SAMPLES[other].write(TEXTS))
        if suffix in TEXT:
            assert f"Expected text in UTF-8. Name it {other}." in refusal(path)
        else:  # both are read by what they are
            check(path, TEXTS)
    if suffix not in TEXT:
        message = refusal(written(tmp_path, f"rows{suffix}", SAMPLES[".csv"].write(TEXTS)))
        assert "It is text: name it .csv, .tsv or .jsonl" in message


@pytest.mark.parametrize("name", ["PAR1", "FEA1", "%PDF-1", "PK", "SQLite format 3", "BZh9"])
def test_a_text_may_start_with_the_name_of_another_kind(tmp_path, name):
    for suffix, between in ((".csv", ","), (".tsv", "\t"), (".csv", "\t"), (".csv", "\r\n")):
        header = [name, "text"] if between != "\r\n" else [name]
        content = f"{between.join(header)}\n{between.join(['a'] * len(header))}\n"
        assert len(list(rows_of(written(tmp_path, f"r{suffix}", content.encode()), name))) >= 1
    line = "a " * 128 + "custard"
    assert line.index("ustar") == 257  # where tar has its mark
    check(written(tmp_path, "a.txt", f"{line}\n".encode()), [line])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_text_of_another_structure_is_named(tmp_path, suffix):
    kinds = {
        "an HTML page, perhaps an error page": "<!DOCTYPE html>\n<html><body>404",
        "XML": '<?xml version="1.0"?>\n<rows>',
        "one JSON array": '[\n  {"text": "a"}\n]',
    }
    if suffix != ".jsonl":
        kinds["JSON"] = '{"text": "a", "label": "b"}\n'
    for what, content in kinds.items():
        assert f": is {what}. Expected" in refusal(
            written(tmp_path, f"rows{suffix}", content.encode())
        )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_file(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    path.symlink_to("/dev/null")
    assert "is a pipe or a device. Name a file; only --input=- reads" in refusal(path)
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe or a device" in refusal(path)
    near = path.rename(tmp_path / f"trian{suffix}")
    assert f"there is no such file. Did you mean {near.name!r}?" in refusal(path)
    path.mkdir()
    assert "is a directory. Name a file." in refusal(path)
    inside = tmp_path / "none" / f"x{suffix}"
    assert "there is no such file. Check the path." in refusal(inside)
    assert "cannot be read: Not a directory" in refusal(near / f"x{suffix}")
    loop = tmp_path / f"loop{suffix}"
    loop.symlink_to(loop)
    assert "cannot be read" in refusal(loop)
    assert "cannot be read: File name too long" in refusal(tmp_path / f"{'a' * 300}{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_vanishes_or_cannot_be_read_on(tmp_path, suffix, monkeypatch):
    path = written(tmp_path, f"rows{suffix}", SAMPLES[suffix].write(TEXTS))
    real = Path.open

    def vanished(self, *args):
        path.unlink()
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", vanished)
        assert "there is no such file" in refusal(path)

    class Failing(io.BytesIO):
        def read(self, *args):
            raise OSError(errno.EIO, "Input/output error")

        readline = read

    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", lambda self, mode: Failing(b"x" * 1000))
    assert "Input/output error" in refusal(path)


def test_unknown_suffixes_name_those_that_are_read(tmp_path):
    for name, said in (
        ("a.xlsx", "unknown kind of file '.xlsx'. Expected .bio, .conll, .csv"),
        ("a.json", "unknown kind of file '.json'. Did you mean '.jsonl'? Expected"),
        ("a.gz", "unknown kind of file '.gz'. Expected"),
        ("rows", ".tsv, .txt (each also .gz), or .arrow, .feather, .parquet."),
        ("gs://a/b.csv", "data are read from local files"),
        ("https://example.org/a.csv", "curl -LO 'https://example.org/a.csv'"),
        (str(Path(__file__).parent), "is a directory. Name a file. For a data set in a folder"),
    ):
        with pytest.raises(DataError) as caught:
            formats.format_for(Path(name))
        assert said in str(caught.value)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    content=st.sampled_from(["good", "none"]),
    place=st.integers(0, 200),
    damage=st.one_of(st.binary(), st.text('",\t\n\r{}[]:a1\\# ').map(str.encode)),
    removed=st.integers(0, 9),
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_bytes_are_rows_or_a_data_error(
    tmp_path_factory, suffix, content, place, damage, removed
):
    good = SAMPLES[suffix].write(TEXTS) if content == "good" else b""
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(good[:place] + damage + good[place + removed :])
    try:
        lines = [row.line for row in rows_of(path)]
    except DataError as error:
        assert str(error).startswith(str(path))
    else:
        assert lines == sorted(set(lines))


# --- streaming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", TEXT)
def test_rows_come_before_the_file_has_been_read(tmp_path, suffix):
    sample = SAMPLES[suffix]
    content = sample.write(["word text"] * 10_000 + ["last text"])
    rows = rows_of(written(tmp_path, f"rows{suffix}", content.replace(b"last", b"\xff")))
    assert next(rows) == (sample.first, {sample.column: sample.cell("word text")})
    with pytest.raises(DataError, match=f":{sample.lines(10_001)[-1]}: byte .* {NOT_UTF8}"):
        list(rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_file(tmp_path, suffix, monkeypatch):
    """Three times the rows, in .gz where the format has that, take what a third does: the rows that
    JSONL looks ahead, a batch of Parquet."""
    name = f"rows{suffix}.gz" if suffix in TEXT else f"rows{suffix}"
    monkeypatch.setattr(jsonl, "_FIRST", 500)
    texts = [f"{i} {'w' * 100}" for i in range(3000)]
    peaks = []
    for copies in (1, 3):
        content = SAMPLES[suffix].write(texts * copies)
        path = written(tmp_path, name, gzip.compress(content, 1) if suffix in TEXT else content)
        peak = count = 0
        tracemalloc.start()
        for count, _ in enumerate(rows_of(path), start=1):
            if count % 100 == 0:
                peak = max(peak, pa.total_allocated_bytes())
        peaks.append(peak + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == copies * len(texts)
    assert peaks[1] < peaks[0] + 200_000  # 600 KB more stand in the file
