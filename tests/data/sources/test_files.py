"""Files of rows: what is read as it stands, and what is refused with file, line and a fix."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data import decode, formats
from flaxbert.data.rows import Rows
from flaxbert.data.sources.files import read_input_chunks, read_rows, refuse_same_file
from flaxbert.errors import DataError

# The same examples in every run, so that a failure is a failure everywhere.
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture
def read(tmp_path: Path):
    """Writes a file and reads its columns text and label."""

    def write_and_read(name: str, content: str | bytes, **columns: str) -> Rows:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_rows(path, **{"text": "text", "label": "label", **columns})

    return write_and_read


def read_inputs(path: str, *, text: str, text_pair: str = "") -> Rows:
    """All parts of an input as one."""
    parts = list(read_input_chunks(path, text=text, text_pair=text_pair))
    return Rows(
        parts[0].source if parts else path,
        [value for part in parts for value in part.texts],
        [value for part in parts for value in part.pairs or []] if text_pair else None,
        None,
        [line for part in parts for line in part.lines],
    )


def refusal(call, *args, **kwargs) -> str:
    """Returns the message of the DataError that the call raises."""
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_code == 3
    return str(caught.value)


# --- what is read -------------------------------------------------------------------------------


def test_csv_quoting(read):
    rows = read("a.csv", 'text,label\n"a, ""b""",1\nplain,0\n" spaced ",x\n')
    assert rows.texts == ['a, "b"', "plain", " spaced "]
    assert rows.targets == ["1", "0", "x"]
    assert rows.pairs is None


def test_csv_lines_count_embedded_newlines_and_blank_lines(read):
    rows = read("a.csv", 'text,label\n"one\ntwo\n\nthree",1\n\nfour,0\r\n\r\n"",2\n')
    assert rows.texts == ["one\ntwo\n\nthree", "four", ""]
    assert list(rows.lines) == [2, 7, 9]
    assert rows.where(1).endswith("a.csv:7")


def test_blank_lines_before_the_header(read):
    rows = read("a.csv", "\n\ntext,label\na,1\n")
    assert (rows.texts, list(rows.lines)) == (["a"], [4])


def test_columns_are_found_by_name_and_in_any_order(read):
    rows = read("a.csv", "id, label ,b,text\n7,x,second,first\n", text_pair="b")
    assert (rows.texts, rows.pairs, rows.targets) == (["first"], ["second"], ["x"])


def test_an_unwanted_label_is_not_read(read):
    assert read("a.csv", "text\na\n", label="").targets is None


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_byte_order_mark_is_no_part_of_the_text(read, name):
    content = {"a.csv": "text,label\nä,1\n", "a.tsv": "text\tlabel\nä\t1\n"}.get(
        name, '{"text": "ä", "label": "1"}\n'
    )
    rows = read(name, b"\xef\xbb\xbf" + content.encode())
    assert (rows.texts, rows.targets) == (["ä"], ["1"])


def test_tsv_has_no_quoting(read):
    rows = read("a.tsv", 'text\tlabel\n"a, b\t1\nsay "hi"\t0\n\n""\t2\n')
    assert rows.texts == ['"a, b', 'say "hi"', '""']
    assert list(rows.lines) == [2, 3, 5]


def test_suffix_is_read_without_case(read):
    assert read("a.TSV", "text\tlabel\na\t1\n").texts == ["a"]


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "N/A", "true", "007", "1e3"])
def test_words_that_other_readers_turn_into_values_stay_text(read, word):
    for name, content in (
        ("a.csv", f"text,label\n{word},{word}\n"),
        ("a.tsv", f"text\tlabel\n{word}\t{word}\n"),
        ("a.jsonl", json.dumps({"text": word, "label": word}) + "\n"),
    ):
        rows = read(name, content)
        assert (rows.texts, rows.targets) == ([word], [word]), name


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_cell_may_be_very_long(read, name):
    text = "wörd " * 400_000  # 2 MB; the csv module stops at 128 KiB by itself
    content = {"a.csv": f'text,label\n"{text}",1\n', "a.tsv": f"text\tlabel\n{text}\t1\n"}.get(
        name, json.dumps({"text": text, "label": "1"}, ensure_ascii=False) + "\n"
    )
    assert read(name, content).texts == [text]


def test_jsonl_keeps_types_and_says_what_is_missing(read):
    rows = read(
        "a.jsonl",
        '{"text": "a", "label": 1}\n\n{"label": ["x", "y"], "text": null}\r\n{"text": "c"}',
    )
    assert rows.texts == ["a", None, "c"]
    assert rows.targets == [1, ["x", "y"], None]
    assert list(rows.lines) == [1, 3, 4]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_jsonl_and_text_end_lines_only_at_newlines(read, tmp_path, separator):
    # str.splitlines would split at each of these; \x0b and \x0c must be escaped within JSON.
    text = f"a{separator}b"
    escaped = text if separator > " " else json.dumps(text)[1:-1]
    rows = read("a.jsonl", f'{{"text": "{escaped}", "label": 0}}\n{{"text": "c", "label": 1}}\n')
    assert (rows.texts, list(rows.lines)) == ([text, "c"], [1, 2])
    (tmp_path / "a.txt").write_text(f"{text}\nc\n", "utf-8")
    assert read_inputs(str(tmp_path / "a.txt"), text="text").texts == [text, "c"]


@pytest.mark.parametrize("suffix", [".csv", ".TSV", ".jsonl"])
def test_gzip_of_text_formats(read, suffix):
    content = {".csv": "text,label\nä,1\n", ".TSV": "text\tlabel\nä\t1\n"}.get(
        suffix, '{"text": "ä", "label": "1"}\n'
    )
    rows = read(f"rows{suffix}.gz", gzip.compress(content.encode()))
    assert (rows.texts, rows.targets) == (["ä"], ["1"])
    # Two members end to end are one file, as `cat a.gz b.gz` makes it.
    both = gzip.compress(content.encode()) + gzip.compress(content.splitlines()[-1].encode())
    assert read(f"rows{suffix}.gz", both).texts == ["ä", "ä"]


@pytest.mark.parametrize("cut", [5, 20, -9, -1])
def test_a_cut_gzip_file(read, cut):
    data = gzip.compress(("text,label\n" + "word,1\n" * 500).encode())
    assert "the gzip file ends too early. Copy" in refusal(read, "a.csv.gz", data[:cut])


@pytest.mark.parametrize("place", [12, 40, -6])
def test_a_damaged_gzip_file(read, place):
    data = bytearray(gzip.compress(("text,label\n" + "word,1\n" * 500).encode()))
    data[place] ^= 0xFF
    message = refusal(read, "a.csv.gz", bytes(data))
    assert "gzip" in message and "again" in message


@PROPERTY
@given(cells=st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_what_a_csv_or_jsonl_writer_writes_comes_back(tmp_path_factory, cells):
    folder = tmp_path_factory.getbasetemp()
    with (folder / "written.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *cells])
    with (folder / "written.jsonl").open("w", encoding="utf-8", newline="") as file:
        for text, label in cells:
            file.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
    for name in ("written.csv", "written.jsonl"):
        rows = read_rows(folder / name, text="text", label="label")
        assert list(zip(rows.texts, rows.targets, strict=True)) == cells


@PROPERTY
@given(
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]),
    head=st.sampled_from([b"", b"text,label\n", b"text\tlabel\n", b'{"text": "a", "label": 1}\n']),
    rest=st.one_of(st.binary(), st.text('",\t\n\r{}[]:a1\\').map(str.encode)),
)
def test_any_bytes_are_rows_or_a_data_error(tmp_path_factory, suffix, head, rest):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(head + rest)
    try:
        rows = read_rows(path, text="text", label="label")
    except DataError as error:
        assert str(error).startswith(str(path))
    else:
        assert len(rows.texts) == len(rows.targets) == len(rows.lines)
        assert list(rows.lines) == sorted(set(rows.lines))


def test_take_keeps_rows_together(read):
    rows = read("a.csv", "text,label,b\na,1,x\nb,2,y\nc,3,z\n", text_pair="b")
    part = rows.take([2, 0], "part")
    assert (part.texts, part.pairs, part.targets) == (["c", "a"], ["z", "x"], ["3", "1"])
    assert part.where(0).endswith("a.csv (part):4")
    assert rows.take([], "").source == rows.source
    assert len(rows.take([], "")) == 0


# --- what is refused ----------------------------------------------------------------------------

NOT_UTF8 = "Save the file as UTF-8"

REFUSED = {
    # name: (file, content, what the message must say: place, problem, fix)
    "byte": ("a.csv", b"text,label\na,1\nb\xe9,0\n", (":3:", "byte 16 (0xe9)", NOT_UTF8)),
    "byte after a mark": (
        "a.csv",
        b"\xef\xbb\xbftext,label\nab\xff,1\n",
        (":2:", "byte 16 (0xff)", NOT_UTF8),
    ),
    "byte in jsonl": ("a.jsonl", b'{"text": "\xff"}', (":1:", "byte 10 (0xff)", NOT_UTF8)),
    "UTF-16 LE": ("a.csv", "text,label\n".encode("utf-16"), ("a.csv:", "UTF-16", "as UTF-8")),
    "UTF-16 BE": ("a.csv", b"\xfe\xff\0t", ("a.csv:", "UTF-16", "as UTF-8")),
    "surrogate": ("a.csv", b"text,label\n\xed\xa0\x80,1\n", (":2:", "byte 11 (0xed)", NOT_UTF8)),
    "NUL": ("a.csv", "text,label\na,1\nb\0,0\n", (":3:", "NUL", "Remove it")),
    "NUL in tsv": ("a.tsv", "text\tlabel\nb\0\t0\n", (":2:", "NUL", "Remove it")),
    "NUL in jsonl": ("a.jsonl", '{"text": "\0"}', (":1:", "NUL", "Remove it")),
    "too many cells": (
        "a.csv",
        'text,label\n"a\nb",1\nc,d,1\n',
        (":4:", "3 cells, the header has 2", "Quote"),
    ),
    "too few cells": ("a.csv", "text,label\na,1\nb\n", (":3:", "1 cells", "Quote")),
    "too many cells in tsv": (
        "a.tsv",
        "text\tlabel\na\tb\t1\n",
        (":2:", "3 cells", "use CSV or JSONL"),
    ),
    "open quote": ("a.csv", 'text,label\na,1\n"b,1\nc,0\n', (":3:", "not valid CSV", "Close")),
    "text after a quote": ("a.csv", 'text,label\n"a"b,1\n', (":2:", "not valid CSV", "double")),
    "duplicate column": ("a.csv", "text,label,text\na,1,b\n", (":1:", "'text'", "twice", "Rename")),
    "missing column": (
        "a.csv",
        "\ntexts,label\na,1\n",
        (":2:", "no column 'text'", "Did you mean 'texts'?", "Columns: 'texts', 'label'"),
    ),
    "no near column": ("a.csv", "x,label\na,1\n", (":1:", "no column 'text'", "Columns: 'x'")),
    "empty csv": ("a.csv", "", ("a.csv:", "is empty", "Expected a header line with text, label")),
    "blank csv": ("a.csv", "\n\n\n", ("a.csv:", "is empty", "Expected a header line")),
    "empty jsonl": ("a.jsonl", "\n \n", ("a.jsonl:", "is empty", "one JSON object a line")),
    "key twice": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": "b", "label": 1, "text": "c"}',
        (":2:", "the key 'text' stands twice", "Keep one"),
    ),
    "key twice inside": ("a.jsonl", '{"text": "a", "x": [{"y": 1, "y": 1}]}', (":1:", "'y'")),
    "malformed": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n\n{"text": "b", "label": }\n',
        (":3:", "not valid JSON", "Expected one object a line"),
    ),
    "two objects": ("a.jsonl", '{"text": "a"} {"text": "b"}', (":1:", "Extra data", "one object")),
    "half an object": ("a.jsonl", '{"text": "a",\n"label": 1}', (":1:", "not valid JSON")),
    "list": ("a.jsonl", '\n["a", 1]\n', (":2:", "got list", '{"text": ...}')),
    "bare string": ("a.jsonl", '"a"\n', (":1:", "got str", '{"text": ...}')),
    "null": ("a.jsonl", "null\n", (":1:", "got NoneType", '{"text": ...}')),
    "NaN": ("a.jsonl", '{"text": "a", "label": NaN}\n', (":1:", "NaN is not JSON")),
    "Infinity": ("a.jsonl", '{"text": "a", "label": -Infinity}', (":1:", "-Infinity is not")),
    "deep": ("a.jsonl", '{"text": ' + "[" * 100_000, (":1:", "not valid JSON", "recursion")),
    "huge integer": ("a.jsonl", '{"label": ' + "1" * 5000 + "}", (":1:", "not valid JSON")),
    "missing key": (
        "a.jsonl",
        '{"txt": "a", "label": 1}\n',
        ("no object has the key 'text'", "Did you mean 'txt'?", "Keys: 'txt', 'label'"),
    ),
    "unknown suffix": ("a.xlsx", "", ("'.xlsx'", "Expected one of .csv, .tsv, .jsonl")),
    "gzip of Parquet": ("a.parquet.gz", "", ("compressed inside", "gunzip")),
    "gzip of anything": ("a.gz", "", ("unknown kind of file '.gz'", "Expected one of")),
    "near suffix": ("a.json", "", ("'.json'", "Did you mean '.jsonl'?")),
    "no gzip": ("a.csv.gz", "text,label\n", ("is not a valid gzip file", "take .gz off")),
    "half UTF-16": ("a.csv", "text,label\n".encode("utf-16-le"), (":1:", "iconv -f UTF-16LE")),
    "no suffix": ("rows", "", ("unknown kind of file ''", "Expected one of")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(read, tmp_path, case):
    name, content, said = REFUSED[case]
    message = refusal(read, name, content)
    assert message.startswith(str(tmp_path / name) + ":")
    for part in said:
        assert part in message
    assert len(message) < 1000  # never the whole content


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.csv").write_text("text\n")
    message = refusal(read_rows, tmp_path / "trian.csv", text="text")
    assert "trian.csv: there is no such file. Did you mean 'train.csv'?" in message
    message = refusal(read_rows, tmp_path / "none" / "x.csv", text="text")
    assert "x.csv: there is no such file. Check the path." in message


def test_a_directory_or_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    message = refusal(read_rows, tmp_path / "pipe.csv", text="text")
    assert "pipe.csv: is a named pipe. Name a file. Only --input=- reads a stream." in message
    (tmp_path / "null.csv").symlink_to("/dev/null")
    assert "is a device. Name a file" in refusal(read_rows, tmp_path / "null.csv", text="text")
    (tmp_path / "rows.csv").mkdir()
    assert "is a directory. Name a file." in refusal(read_rows, tmp_path / "rows.csv", text="text")


def test_what_the_system_cannot_open_is_a_data_error(tmp_path):
    assert "cannot be read" in refusal(read_rows, tmp_path / ("a" * 300 + ".csv"), text="text")
    (tmp_path / "file").write_text("")
    assert "cannot be read" in refusal(read_rows, tmp_path / "file" / "rows.csv", text="text")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    assert "cannot be read" in refusal(read_rows, tmp_path / "loop.csv", text="text")


def test_a_file_that_vanishes_or_cannot_be_read_on(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text("text\na\n")
    real = Path.open

    def vanished(self, *args):
        path.rename(tmp_path / "gone")
        return real(self, *args)

    monkeypatch.setattr(Path, "open", vanished)
    assert "rows.csv: there is no such file" in refusal(read_rows, path, text="text")

    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "gone").rename(path)
    monkeypatch.setattr(Path, "open", lambda self, mode: Failing())
    assert "cannot be read: Input/output error" in refusal(read_rows, path, text="text")


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_one_file_under_two_names(tmp_path, link):
    train = dev = tmp_path / "train.csv"
    train.write_text("text\n")
    if link:
        dev = tmp_path / "dev.csv"
        dev.symlink_to(train) if link == "symbolic" else dev.hardlink_to(train)
    names = {"config.data.train": str(train), "config.data.validation": str(dev)}
    message = refusal(refuse_same_file, names)
    assert message.startswith(
        f"config.data.train={train} and config.data.validation={dev} are one file. "
    )
    (tmp_path / "other.csv").write_text("text\n")
    refuse_same_file({"a": str(train), "b": str(tmp_path / "other.csv"), "c": "", "d": "none"})


def test_lines_that_are_no_row_can_be_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\nb\nc,d,1\n\ne,0\n")
    rows = read_rows(tmp_path / "a.csv", text="text", label="label", on_bad_row="skip")
    assert (rows.texts, list(rows.lines)) == (["a", "e"], [2, 6])
    assert rows.skipped == {"another number of cells than the header": [3, 4]}
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "label": 1}\n{"text"\n[1]\n{"text": "b", "text": "c"}\n{"text": "d"}\n'
    )
    rows = read_rows(tmp_path / "a.jsonl", text="text", label="label", on_bad_row="skip")
    assert (rows.texts, rows.targets, list(rows.lines)) == (["a", "d"], [1, None], [1, 5])
    assert rows.skipped == {
        "not valid JSON": [2],
        "not a JSON object": [3],
        "a key twice in one object": [4],
    }
    # Not the fault of a row: what is left would not be what the file means.
    (tmp_path / "b.csv").write_text('text,label\na,1\n"b,1\n')
    refusal(read_rows, tmp_path / "b.csv", text="text", label="label", on_bad_row="skip")


# --- inputs of predict --------------------------------------------------------------------------


def test_inputs_from_text_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  three \nlast")
    rows = read_inputs(str(path), text="ignored")
    assert rows.texts == ["one", "", "  three ", "last"]
    assert list(rows.lines) == [1, 2, 3, 4]
    path.write_bytes(b"")
    assert len(read_inputs(str(path), text="text")) == 0


def test_inputs_from_standard_input(monkeypatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    give("ä\nb\n".encode())
    assert read_inputs("-", text="text").texts == ["ä", "b"]
    give(b"a\n\xff\n")
    message = refusal(read_inputs, "-", text="text")
    assert message.startswith("standard input:2: byte 2 (0xff)")


def test_inputs_from_a_table(tmp_path):
    (tmp_path / "a.csv").write_text("q,p\na,b\n")
    rows = read_inputs(str(tmp_path / "a.csv"), text="q", text_pair="p")
    assert (rows.texts, rows.pairs, rows.targets) == (["a"], ["b"], None)
    message = refusal(read_inputs, str(tmp_path / "a.pdf"), text="q")
    assert "'.pdf'" in message
    assert ".parquet, .txt, or - for standard input" in message


# --- in parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parts_are_the_whole_in_order(tmp_path, suffix, size):
    texts = [f"text {i}" for i in range(10)]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif suffix == ".csv.gz":
        path.write_bytes(gzip.compress("\n".join(["text", *texts]).encode()))
    else:
        path.write_text("\n".join(texts if suffix == ".txt" else ["text", *texts]))
    parts = list(read_input_chunks(str(path), text="text", size=size))
    assert [len(part) for part in parts[:-1]] == [size] * (-(-10 // size) - 1)
    assert [text for part in parts for text in part.texts] == texts
    whole = read_inputs(str(path), text="text")
    assert [line for part in parts for line in part.lines] == whole.lines
    assert whole.texts == texts


def test_parts_come_before_the_file_is_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text\n" + b"word\n" * 1_000_000 + b"\xff\n")
    parts = read_input_chunks(str(path), text="text", size=100)
    assert next(parts).texts == ["word"] * 100  # before the byte that is not UTF-8
    message = refusal(list, parts)
    assert ":1000002: byte 5000005 (0xff)" in message


def test_a_key_that_no_object_has_is_named_before_the_first_part(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"txt": "a"}\n' * 20_000)
    message = refusal(next, read_input_chunks(str(path), text="text"))
    assert "no object has the key 'text'. Did you mean 'txt'?" in message


@pytest.mark.parametrize("kind", ["lines", "one line", "quoted", "json"])
def test_a_gzip_bomb_is_read_in_little_memory(tmp_path, monkeypatch, kind):
    """48 MB of text in a small file: memory stays near a block, or the row's length is refused."""
    monkeypatch.setattr(decode, "LONGEST_ROW", 1 << 20)
    monkeypatch.setattr(formats, "LONGEST_ROW", 1 << 20)
    path = tmp_path / ("bomb.jsonl.gz" if kind == "json" else "bomb.csv.gz")
    unit = {"lines": b"word " * 2000 + b"\n", "quoted": b"word " * 100 + b"\n"}.get(kind, b"word ")
    start = {"quoted": b'text\n"', "json": b'{"text": "'}.get(kind, b"text\n")
    block = unit * (1_000_000 // len(unit))
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(48):
            file.write(block)
    assert path.stat().st_size < 1e6
    tracemalloc.start()
    try:
        chunks = read_input_chunks(str(path), text="text", size=100)
        if kind == "lines":
            assert sum(map(len, chunks)) == 99 * 48
        else:
            place = ":1:" if kind == "json" else ":2:"
            message = refusal(list, chunks)
            assert f"{place} a row longer than 1 million characters" in message
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


def test_standard_input_gives_parts_before_it_ends(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as other:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        chunks = read_input_chunks("-", text="text", size=2)
        other.write(b"\xef")  # half of a mark
        other.write(b"\xbb\xbfone\ntwo\nthr")
        assert next(chunks).texts == ["one", "two"]
        other.write(b"ee\n\xc3")  # half of a character
        other.close()
        assert "standard input:4: byte 17 (0xc3) is not UTF-8" in refusal(next, chunks)


@pytest.mark.parametrize("bad", [8191, 8192, 8193])
def test_a_bad_line_where_jsonl_stops_holding_back(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    lines = ["not json" if n == bad else f'{{"text": "{n}"}}' for n in range(1, 9001)]
    path.write_text("\n".join(lines))
    rows = read_rows(path, text="text", on_bad_row="skip")
    assert list(rows.lines) == [n for n in range(1, 9001) if n != bad]
    path.write_text("\n".join(lines[:8192]))
    assert len(read_rows(path, text="text", on_bad_row="skip")) == 8192 - (bad <= 8192)


@pytest.mark.parametrize("labels", [3, 5000])
def test_a_label_of_many_rows_is_one_string(tmp_path, labels):
    path = tmp_path / "rows.csv"
    rows = [f"text {i},label {i % labels}" for i in range(10_000)]
    path.write_text("\n".join(["text,label", *rows, "text,label 1"]) + "\n")
    targets = read_rows(path, text="text", label="label").targets
    assert targets is not None
    assert targets[1] is targets[-1]
