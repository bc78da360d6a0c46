"""A user's own files as rows, whole or in parts; standard input; one file under two names."""

from __future__ import annotations

import io
import os

import pytest

from flaxbert.config import Data
from flaxbert.data.bad_rows import BadRowError
from flaxbert.data.rows import Rows
from flaxbert.data.sources.files import has_columns, open_data, read_chunks, read_rows
from flaxbert.errors import DataError
from tests.data.formats.samples import SAMPLES

TEXT = {"text": "text"}
BOTH = {"text": "text", "label": "label"}


def refusal(call, *args, **kwargs) -> str:
    """Returns the message of the DataError that the call raises."""
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_columns_by_what_they_are_for(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id, label ,b,text\n7,x,second,first\n")
    rows = read_rows(path, {**BOTH, "text_pair": "b"})
    assert (rows.texts, rows.pairs, rows.targets) == (["first"], ["second"], ["x"])
    assert (rows.source, rows.where(0)) == (str(path), f"{path}:2")
    rows = read_rows(path, {"text": "b", "text_pair": "b", "label": ""})
    assert (rows.texts, rows.pairs, rows.targets) == (["second"], ["second"], None)


def test_take_keeps_rows_together(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,b\na,1,x\nb,2,y\nc,3,z\n")
    rows = read_rows(tmp_path / "a.csv", {**BOTH, "text_pair": "b"})
    part = rows.take([2, 0], "part")
    assert (part.texts, part.pairs, part.targets) == (["c", "a"], ["z", "x"], ["3", "1"])
    assert part.where(0).endswith("a.csv (part):4")
    assert rows.take([], "").source == rows.source
    assert len(rows.take([], "")) == 0


def test_lines_that_are_no_row_can_be_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\nb\nc,d,1\n\ne,0\n")
    rows = read_rows(tmp_path / "a.csv", BOTH, on_bad_row="skip")
    assert (rows.texts, rows.lines) == (["a", "e"], [2, 6])
    assert rows.skipped == {"another number of cells than the header": [3, 4]}


def test_equal_labels_are_one_string(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,label 1\nb,label 2\nc,label 1\n")
    targets = read_rows(path, BOTH).targets
    assert targets is not None and targets[0] is targets[2]
    path = tmp_path / "rows.bio"
    path.write_text("a B-LOC\nb B-LOC\n")
    (tags,) = read_rows(path, {"tags": "tags"}).columns["tags"]
    assert tags[0] is tags[1]


def test_text_lines_have_no_label(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\n")
    message = refusal(read_rows, tmp_path / "a.txt", BOTH)
    assert "a.txt: has one text a line and no columns; asked for 'text', 'label'" in message
    assert read_rows(tmp_path / "a.txt", {"text": "x"}).texts == ["a", "b"]


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_one_file_under_two_names(tmp_path, link):
    train = dev = tmp_path / "train.csv"
    train.write_text("text\n")
    if link:
        dev = tmp_path / "dev.csv"
        dev.symlink_to(train) if link == "symbolic" else dev.hardlink_to(train)
    data = Data(train=str(train), validation=str(dev))
    message = refusal(open_data, data, "")
    assert message.startswith(
        f"config.data.train={train} and config.data.validation={dev} are one file. "
    )
    (tmp_path / "other.csv").write_text("text\n")
    assert open_data(Data(train=str(train), validation=str(tmp_path / "other.csv")), "")
    assert open_data(Data(train=str(train), test="none"), "")


# --- in parts -----------------------------------------------------------------------------------


def whole(path: str, columns: dict[str, str]) -> Rows:
    (rows,) = read_chunks(path, columns)
    return rows


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".parquet"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parts_are_the_whole_in_order(tmp_path, suffix, size):
    texts = [f"text {i}" for i in range(10)]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(SAMPLES[suffix].write(texts))
    parts = list(read_chunks(str(path), TEXT, size=size))
    assert [len(part) for part in parts[:-1]] == [size] * (-(-10 // size) - 1)
    assert [text for part in parts for text in part.texts] == texts
    assert [line for part in parts for line in part.lines] == SAMPLES[suffix].lines(10)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_skipped_lines_are_in_the_part_where_they_stand(tmp_path, size):
    path = tmp_path / "a.csv"
    path.write_text("text\n1,\na\nb\nc,d\ne\nf,\ng,\n")
    parts = list(read_chunks(str(path), TEXT, size=size, on_bad_row="skip"))
    kept = [list(part.lines) for part in parts]
    skipped = [[n for lines in part.skipped.values() for n in lines] for part in parts]
    assert [n for lines in kept for n in lines] == [3, 4, 6]
    assert [n for lines in skipped for n in lines] == [2, 5, 7, 8]
    in_order = [n for both in zip(kept, skipped, strict=True) for n in sorted(both[0] + both[1])]
    assert in_order == [2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(BadRowError, match=":2: has 2 cells"):
        list(read_chunks(str(path), TEXT))


def test_what_is_unusual_is_noted_once(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id;text\n1;a\n2;b\n")
    note = "cells are separated by semicolons, as the header shows"
    assert read_rows(path, TEXT).take([0], "part").notes == [note]
    assert [part.notes for part in read_chunks(str(path), TEXT, size=1)] == [(note,), ()]


def test_lines_as_they_stand(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  three \nlast")
    rows = whole(str(path), {"text": "ignored"})
    assert (rows.texts, rows.lines) == (["one", "", "  three ", "last"], [1, 2, 3, 4])
    path.write_bytes(b"")
    assert list(read_chunks(str(path), TEXT)) == []


def test_standard_input(monkeypatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    give("ä\nb\n".encode())
    rows = whole("-", TEXT)
    assert (rows.texts, rows.source) == (["ä", "b"], "standard input")
    give(b"a\n\xff\n")
    message = refusal(list, read_chunks("-", TEXT))
    assert message.startswith("standard input:2: byte 2 (0xff)")


def test_standard_input_gives_parts_before_it_ends(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as other:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        chunks = read_chunks("-", TEXT, size=2)
        other.write(b"\xef")  # half of a mark
        other.write(b"\xbb\xbfone\ntwo\nthr")
        assert next(chunks).texts == ["one", "two"]
        other.write(b"ee\n\xc3")  # half of a character
        other.close()
        assert "standard input:4: byte 17 (0xc3) is not UTF-8" in refusal(next, chunks)


def test_what_has_columns():
    assert [has_columns(path) for path in ("-", "a.txt.gz", "a.csv", "a.parquet")] == [
        False, False, True, True,
    ]  # fmt: skip
    assert "'.pdf'" in refusal(has_columns, "a.pdf")
