"""Texts come back as they went in, from memory and from the disk."""

from __future__ import annotations

import gc
import resource
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data import overlap, texts
from flaxbert.data.overlap import Repeat
from flaxbert.data.rows import Rows
from flaxbert.data.texts import Texts
from flaxbert.errors import DataError

# The same examples in every run, so that a failure is a failure everywhere.
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)

ODD = ["", "a", None, "ä\x00\n", "\ud800", 3, "😀" * 3, ["x"], "", None]
CELLS = st.one_of(st.text(), st.none(), st.just("\udfff"), st.integers(), st.booleans())


@pytest.fixture(params=[10**6, 7], ids=["in memory", "on disk"])
def stored(request, monkeypatch):
    monkeypatch.setattr(texts, "_IN_MEMORY", request.param)
    monkeypatch.setattr(texts, "_AT_ONCE", 3)


def test_texts_are_a_sequence_of_what_was_added(stored):
    column = Texts(ODD[:4])
    for value in ODD[4:]:
        column.append(value)
    assert len(column) == len(ODD)
    assert list(column) == ODD
    assert column == ODD and column == Texts(ODD)
    assert column != ODD[1:] and column != ["x", *ODD[1:]] and column != "text"
    assert [column[i] for i in range(len(ODD))] == ODD
    assert [column[-i] for i in range(1, 4)] == ODD[:-4:-1]
    for part in (slice(None), slice(2, 7), slice(7, 2), slice(-3, 99), slice(None, None, -2)):
        assert column[part] == ODD[part]
    for index in (len(ODD), -len(ODD) - 1):
        with pytest.raises(IndexError, match=f"text {index} of 10"):
            column[index]


def test_texts_can_be_added_while_they_are_read(stored):
    column = Texts(["one", "two"])
    assert column[0] == "one"
    column.append("three")
    assert list(column) == ["one", "two", "three"]


def test_a_part_is_read_without_the_rest(stored, monkeypatch):
    column = Texts(map(str, range(20)))
    read, whole = [], column._read
    monkeypatch.setattr(column, "_read", lambda a, b: read.append((a, b)) or whole(a, b))
    assert list(column.part(8, 16)) == list(map(str, range(8, 16)))
    assert read == [(8, 11), (11, 14), (14, 16)]
    assert list(column.part(5, 5)) == []


@pytest.mark.parametrize("indices", [[], [3], [0, 4], [2, 3, 4], [4, 1], [1, 1], [1, 3]])
def test_rows_are_taken_as_a_list_would_give_them(stored, indices):
    cells, lines = list("abcde"), [2, 5, 6, 8, 9]
    rows = Rows("rows.csv", Texts(cells), Texts(cells[::-1]), cells, lines)
    taken = rows.take(indices, "part")
    assert taken.texts == taken.targets == [cells[i] for i in indices]
    assert taken.pairs == [cells[4 - i] for i in indices]
    assert list(taken.lines) == [lines[i] for i in indices]
    read, whole = [], rows.texts._read
    rows.texts._read = lambda a, b: read.append((a, b)) or whole(a, b)
    rows.take([3, 4], "")
    assert read == [(3, 5)]  # predict takes part after part


@PROPERTY
@given(st.lists(CELLS))
def test_any_cells_come_back(values):
    assert list(Texts(values)) == values


def test_the_file_goes_with_the_texts(monkeypatch):
    monkeypatch.setattr(texts, "_IN_MEMORY", 1)
    column = Texts(["some", "texts"])
    file = column._file
    del column
    gc.collect()
    assert file.closed


def test_no_room_for_texts_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(texts, "_IN_MEMORY", 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, old[1]))
    try:
        with pytest.raises(DataError, match="cannot keep texts there: File too large") as caught:
            list(Texts(["word " * 100] * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(caught.value).startswith(tempfile.gettempdir())
    assert "set TMPDIR" in str(caught.value)
    assert caught.value.exit_code == 3
    gc.collect()  # closing writes what is left; pytest would show that error


def test_no_folder_for_texts_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "_IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(DataError, match=r"no folder for temporary files.* Set TMPDIR"):
        list(Texts(["word"]))


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(["", " ", "a", "A", "b"]), st.sampled_from(["", "a"]))))
def test_repeats_are_all_later_rows_of_a_text(pairs):
    first: dict[tuple[str, str], int] = {}
    expected = []
    targets = [str(row % 2) for row in range(len(pairs))]
    for row, both in enumerate(pairs):
        earlier = first.setdefault(both, row)
        if earlier != row and any(text.strip() for text in both):
            expected.append(Repeat(row, earlier, True, targets[row] != targets[earlier]))
    columns = [Texts(pair[side] for pair in pairs) for side in (0, 1)]
    rows = Rows("rows.csv", *columns, None, range(2, len(pairs) + 2))
    assert overlap.repeats(rows, targets) == expected


def test_texts_of_one_hash_are_compared(monkeypatch):
    monkeypatch.setattr(overlap, "hash", lambda texts: 0, raising=False)
    rows = Rows("rows.csv", ["a", "b", "a", "c", "b"], None, None, range(2, 7))
    assert overlap.repeats(rows, list("xxxxy")) == [
        Repeat(2, 0, exact=True, conflict=False),
        Repeat(4, 1, exact=True, conflict=True),
    ]
