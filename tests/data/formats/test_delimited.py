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
    bad = BadRows()
    rows = read("a.tsv", 'text\tlabel\n"a, b\t1\nsay "hi"\t0\n\n""\t2\n"a"\t3\n', bad)
    assert rows == [(2, '"a, b', "1"), (3, 'say "hi"', "0"), (5, '""', "2"), (6, '"a"', "3")]
    assert bad.notes == []


def test_tsv_that_looks_quoted_is_told(read):
    bad = BadRows()
    content = 'text\tlabel\nplain\t1\n"the ""best"" one"\t0\n"""so"" so"\t0\n'
    assert read("a.tsv", content, bad)[1] == (3, '"the ""best"" one"', "0")
    (note,) = bad.notes
    assert note.startswith("WARNING: line 3 has a cell in quotes") and "name it .csv" in note
    bad = BadRows()  # what the note advises
    assert read("a.csv", content, bad)[1:] == [(3, 'the "best" one', "0"), (4, '"so" so', "0")]
    assert bad.notes == ["cells are separated by tabs, as the header shows"]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.csv", 'id;text;label\r\n1;so, so;4,5\r\n2;"a;\nb";1\r\n', "semicolons"),
        ("a.csv", 'id\ttext\tlabel\n1\tso, so\t4,5\n2\t"a;\nb"\t1\n', "tabs"),
        ("a.csv", '"id"|"text"|"label"\n1|so, so|4,5\n2|"a;\nb"|1\n', "bars"),
        ("a.tsv", 'label,text\n"4,5","so, so"\n1,"a;\nb"\n', "commas and quoted"),
        ("a.tsv", '"text"\t"label"\n"so, so"\t"4,5"\n"a;\nb"\t"1"\n', "tabs and quoted"),
        ("a.csv", 'SEP=^\r\ntext^label\r\nso, so^4,5\r\n"a;\nb"^1\r\n', ""),
        ("a.csv", '"sep=;"\ntext;label\nso, so;4,5\n"a;\nb";1\n', ""),
        ("a.csv", '\ufeffsep=,\ntext,label\n"so, so","4,5"\n"a;\nb",1\n', ""),
    ],
)
def test_other_delimiters(read, name, content, note):
    bad = BadRows()
    rows = read(name, content, bad)
    first = 3 if "sep" in content.lower()[:5] else 2
    assert rows == [(first, "so, so", "4,5"), (first + 1, "a;\nb", "1")]
    assert bad.notes == ([f"cells are separated by {note}, as the header shows"] if note else [])
    with pytest.raises(DataError, match="has 1 cells, the header has"):
        read(name, content + "one\n")


def test_the_suffix_decides_where_the_header_allows_it(read):
    """Also where another delimiter would give these columns too."""
    assert read("a.csv", "text,label,a;text;label\nx,1,y;z;2\n") == [(2, "x", "1")]
    assert read("a.tsv", 'text\tlabel\t",text,label"\nx\t1\ty\n') == [(2, "x", "1")]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('label, text\n1, "a, b"\n0, "so ""so"""\n', [(2, "a, b", "1"), (3, 'so "so"', "0")]),
        ('"label", "text"\n"1", "a"\n0, b\n', [(2, "a", "1"), (3, " b", "0")]),
        (
            'label,text\n1, x\n0,   "a, b"\n1, y\n',
            [(2, " x", "1"), (3, "a, b", "0"), (4, " y", "1")],
        ),
        ('label; text\n1; "a; b"\n', [(2, "a; b", "1")]),
        # A quote behind the comma that would open a cell over lines, or be none.
        ('label,text\n1, "so,"\n0, "so,""so"""\n', [(2, "so,", "1"), (3, 'so,"so"', "0")]),
        # Rows that only look so stay as they are, each line a row.
        (
            'label,text\n1, "one"\n0, "two\n0, three"\n1,four\n',
            [(2, "one", "1"), (3, ' "two', "0"), (4, ' three"', "0"), (5, "four", "1")],
        ),
        (
            'label,text\n0, "So" she said\n1, "one"\n1," ""x"""\n',
            [(2, ' "So" she said', "0"), (3, "one", "1"), (4, ' "x"', "1")],
        ),
        # Another column may have a comma, also in the header.
        ('label,text, "a, b"\n1, x, "y, z"\n', [(2, "x", "1")]),
    ],
)
def test_a_space_before_an_opening_quote(read, content, rows):
    bad = BadRows()
    assert read("a.csv", content, bad) == rows
    assert "has a space before an opening quote" in bad.notes[-1]


def test_spaces_and_quotes_that_stay_as_they_are(read):
    """Cells of RFC 4180, and quotes that do not open a cell."""
    for content in (
        'text,label\n a, b\n" ""x""",1\n"a, ""b"" ",2\n',
        'text,label\nso "so" , x\n5" disk,1\n',
        'text,label\n "a" b,1\n',  # no cell in quotes: text follows behind them
        'text,label,more\n a, 1, "x"\nb,2, "y\nc,3, z"\n',  # a column that is not used
    ):
        bad = BadRows()
        expected = list(csv.reader(content.splitlines(), strict=True))[1:]
        assert [list(row[1:]) for row in read("a.csv", content, bad)] == [r[:2] for r in expected]
        assert bad.notes == []
    with pytest.raises(DataError, match=":2: has 3 cells, the header has 2"):
        read("a.csv", 'text,label\nhe said, "hi" and left,1\n' + "x,1\n" * 5)


def test_a_quoted_header_may_have_several_lines(read):
    """Whatever delimiter its first line seems to have."""
    for content in (
        'text,label,"notes; see\nmanual"\na,1,x\n',
        'more,"a|b|c\n",label,text\nx,y,1,a\n',
    ):
        bad = BadRows()
        assert read("a.csv", content, bad) == [(3, "a", "1")]
        assert bad.notes == []


def test_a_space_before_a_quote_costs_nothing_in_the_lines_behind_it(read):
    """A quote that opens a cell by RFC 4180 would be looked for to the end of the file."""
    content = "label,text\n" + '1, "a,"\n' + "0,b\n" * 10
    assert read("a.csv", content)[:2] == [(2, "a,", "1"), (3, "b", "0")]
    with pytest.raises(DataError, match=":2: has 3 cells, the header has 2"):
        read("a.csv", 'label,text\n1, "a,\nb"\n')  # which lines are rows is never guessed


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("a film,pos\nb,neg\n", "'a film', 'pos'"),
        ("a film;pos\nb;neg\n", "'a film', 'pos'"),
    ],
)
def test_a_missing_header_is_told(read, content, columns):
    with pytest.raises(DataError) as caught:
        read("a.csv", content)
    assert f"Columns: {columns}. If this line is a row and not a header, put one before it: " in (
        str(caught.value)
    )
    assert str(caught.value).endswith("text,label")


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


AWKWARD = st.text(st.sampled_from('a," ;\n\t\r'), max_size=8)


@PROPERTY
@given(cells=st.lists(st.tuples(AWKWARD, AWKWARD), min_size=1), delimiter=st.sampled_from(",;\t|"))
def test_what_is_quoted_as_needed_comes_back(tmp_path_factory, cells, delimiter):
    path = tmp_path_factory.getbasetemp() / "needed.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("text", "label"), *cells])
    bad = BadRows()
    rows = read_rows(path, ["text", "label"], bad)
    assert [(row.cells["text"], row.cells["label"]) for row in rows] == cells
    assert not any("space" in note for note in bad.notes)


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
    "lone quote between tabs": (
        "a.csv",
        'text\tlabel\n"a\t1\nb\t0\n',
        (":2:", "not valid CSV", "name the file .tsv"),
    ),
    "space behind a quote": ("a.csv", 'text,label\n"a" ,1\n', (":2:", "no space behind it")),
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
