"""CSV and TSV: quotes, blank lines, line ends, ragged rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data import decode
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.formats import read_rows
from flaxbert.errors import DataError

# The same examples in every run, so that a failure is a failure everywhere.
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture
def read(tmp_path: Path):
    """Writes a file, and returns [(line, text, label), ...] of it."""

    def write_and_read(name: str, content: str, bad: BadRows | None = None) -> list[tuple]:
        path = tmp_path / name
        path.write_bytes(content.encode())
        rows = read_rows(path, ["text", "label"], bad or BadRows())
        return [(row.line, row.cells["text"], row.cells["label"]) for row in rows]

    return write_and_read


def test_csv_quoting(read):
    rows = read("a.csv", 'text,label\n"a, ""b""",1\nplain,0\n" spaced ",x\n')
    assert rows == [(2, 'a, "b"', "1"), (3, "plain", "0"), (4, " spaced ", "x")]


def test_csv_lines_count_embedded_newlines_and_blank_lines(read):
    rows = read("a.csv", 'text,label\n"one\ntwo\n\nthree",1\n\nfour,0\r\n\r\n"",2\n')
    assert rows == [(2, "one\ntwo\n\nthree", "1"), (7, "four", "0"), (9, "", "2")]
    assert read("a.csv", "\n\ntext,label\na,1\n") == [(4, "a", "1")]


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_line_ends(read, end):
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        content = end.join(
            separator.join(row) for row in (("text", "label"), ("a", "1"), ("b", ""))
        )
        assert read(name, content) == read(name, content + end) == [(2, "a", "1"), (3, "b", "")]
    quoted = f'text,label{end}"a\rb\r\nc",1{end}d,2{end}'
    assert read("a.csv", quoted) == [(2, "a\rb\r\nc", "1"), (5, "d", "2")]


def test_columns_are_found_by_name_and_in_any_order(read):
    assert read("a.csv", "id, label ,b,text\n7,x,second,first\n") == [(2, "first", "x")]


def test_tsv_has_no_quoting(read):
    rows = read("a.tsv", 'text\tlabel\n"a, b\t1\nsay "hi"\t0\n\n""\t2\n')
    assert rows == [(2, '"a, b', "1"), (3, 'say "hi"', "0"), (5, '""', "2")]


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "N/A", "true", "007", "1e3"])
def test_words_that_other_readers_turn_into_values_stay_text(read, word):
    assert read("a.csv", f"text,label\n{word},{word}\n") == [(2, word, word)]
    assert read("a.tsv", f"text\tlabel\n{word}\t{word}\n") == [(2, word, word)]


@PROPERTY
@given(cells=st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_what_a_csv_writer_writes_comes_back(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *cells])
    rows = read_rows(path, ["text", "label"], BadRows())
    assert [(row.cells["text"], row.cells["label"]) for row in rows] == cells


REFUSED = {
    # name: (file, content, what the message must say: place, problem, fix)
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
    "empty": ("a.csv", "", ("a.csv:", "is empty", "Expected a header line with text, label")),
    "blank": ("a.csv", "\n\n\n", ("a.csv:", "is empty", "Expected a header line")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(read, tmp_path, case):
    name, content, said = REFUSED[case]
    with pytest.raises(DataError) as caught:
        read(name, content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name) + ":")
    for part in said:
        assert part in message


def test_ragged_rows_can_be_left_out(read):
    bad = BadRows("skip")
    assert read("a.csv", "text,label\na,1\nb\nc,d,1\n\ne,0\n", bad) == [
        (2, "a", "1"),
        (6, "e", "0"),
    ]
    assert bad.skipped == {"another number of cells than the header": [3, 4]}
    # Not the fault of a row: what is left would not be what the file means.
    with pytest.raises(DataError, match="is not valid CSV"):
        read("b.csv", 'text,label\na,1\n"b,1\n', BadRows("skip"))


def test_a_quoted_cell_of_many_lines_is_a_row_too(read, monkeypatch):
    monkeypatch.setattr(decode, "LONGEST_ROW", 10_000)
    with pytest.raises(DataError, match=":2: a row longer than 10,000 bytes starts here"):
        read("a.csv", 'text,label\n"' + ("word " * 100 + "\n") * 30)
