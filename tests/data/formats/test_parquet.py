"""Parquet: the types that are read, label names of the `datasets` library, what is refused."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from flaxbert.config import Data
from flaxbert.data.bad_rows import BadRowError
from flaxbert.data.checks import Known, learn_labels, usable_texts
from flaxbert.data.formats import parquet
from flaxbert.data.rows import Rows
from flaxbert.data.sources.files import read_chunks, read_rows
from flaxbert.errors import DataError


def read(folder: Path, columns: dict, features: object = None, **wanted: str) -> Rows:
    table = pa.table(columns)
    if features is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, folder / "rows.parquet", row_group_size=2)
    return read_rows(folder / "rows.parquet", {"text": "text", "label": "label", **wanted})


def refusal(*args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        read(*args, **kwargs)
    return str(caught.value)


STRINGS = ["a", "", "NA", None, "ä😀"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
)
def test_strings(tmp_path, kind):
    column = pa.array(STRINGS).cast(kind)
    rows = read(tmp_path, {"label": column, "text": column})
    assert rows.texts == rows.targets == STRINGS
    assert list(rows.lines) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array([1, -1, None], pa.int8()), [1, -1, None]),
        (pa.array([2**63, 0, 1], pa.uint64()), [2**63, 0, 1]),
        (pa.array([0.5, 2.0, None], pa.float32()), [0.5, 2.0, None]),
        (pa.array(np.array([0.5, 2.0, 1.0], np.float16)), [0.5, 2.0, 1.0]),
        # pandas writes a missing number as NaN, unless it is told otherwise.
        (pa.array([0.5, float("nan"), 1.0]), [0.5, None, 1.0]),
        (pa.array([True, False, None]), [True, False, None]),
        (pa.array([["a"], [], None]), [["a"], [], None]),
        (pa.array([[1], [2, 3], []], pa.large_list(pa.int32())), [[1], [2, 3], []]),
        (pa.array([[1, 0]] * 3, pa.list_(pa.int8(), 2)), [[1, 0]] * 3),
        (pa.nulls(3), [None] * 3),
    ],
)
def test_labels(tmp_path, column, values):
    rows = read(tmp_path, {"text": ["a", "b", "c"], "label": column})
    assert rows.targets == values
    assert [type(value) for value in rows.targets] == [type(value) for value in values]


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())],
)
def test_bytes_are_text(tmp_path, kind):
    """As Spark and Impala may write strings; a list of them too."""
    cells = ["a", "", None, "ä😀"]
    column = pa.array([None if cell is None else cell.encode() for cell in cells]).cast(kind)
    rows = read(tmp_path, {"text": column, "label": pa.array([[b"x"], [], None, [b"y"]])})
    assert (rows.texts, rows.targets) == (cells, [["x"], [], None, ["y"]])
    message = refusal(tmp_path, {"text": pa.array([b"a", b"caf\xe9"]).cast(kind)}, label="")
    assert "rows.parquet:2: the cell is binary and not UTF-8 (byte 3 is 0xe9)" in message


def test_rows_with_bytes_that_are_no_text_can_be_left_out(tmp_path):
    """In each kind of file; only in columns that are read; with the numbers of rows in the file."""
    texts = [b"a", b"\xff", b"c", None] + [b"x"] * 1022 + [b"\xe9t\xe9", b"z"]
    tags = [[b"t"], [b"t"], [b"t", b"\xff"], []] + [[b"t"]] * 1024
    table = pa.table({"text": texts, "label": tags, "other": [b"\xff"] * len(texts)})
    pq.write_table(table, tmp_path / "rows.parquet")
    feather.write_feather(table, str(tmp_path / "rows.feather"))
    for name in ("rows.parquet", "rows.feather"):
        path = tmp_path / name
        rows = read_rows(path, {"text": "text", "label": "label"}, "skip")
        assert rows.skipped == {"a cell is binary and not UTF-8": [2, 3, 1027]}
        assert list(rows.lines) == [1, *range(4, 1027), 1028]
        assert (rows.texts[-1], rows.targets[0]) == ("z", ["t"])
        chunks = list(read_chunks(str(path), {"text": "text"}, size=1000, on_bad_row="skip"))
        assert [(len(part), dict(part.skipped)) for part in chunks] == [
            (1000, {"a cell is binary and not UTF-8": [2]}),
            (26, {"a cell is binary and not UTF-8": [1027]}),
        ]
        with pytest.raises(BadRowError, match=rf"{name}:2: the cell is binary"):
            read_rows(path, {"text": "text"})


def test_columns_that_are_not_asked_for_are_not_read(tmp_path, monkeypatch):
    """Of an Arrow file, in which one batch may hold all rows."""
    sizes = []

    class Counting(io.FileIO):
        def read(self, *size):
            data = super().read(*size)
            sizes.append(len(data))
            return data

    monkeypatch.setattr(parquet, "open_file", lambda path: Counting(path))
    table = pa.table({"more": ["m" * 500] * 5000, "text": ["a"] * 5000, "last": [{}] * 5000})
    for compression in ("uncompressed", "lz4"):
        path = tmp_path / "rows.feather"
        feather.write_feather(table, str(path), compression=compression, chunksize=5000)
        sizes.clear()
        assert sum(map(len, read_chunks(str(path), {"text": "text"}))) == 5000
        assert sum(sizes) < 50_000  # 2.5 MB stand in the file


@pytest.mark.parametrize(
    ("numbers", "kind", "values"),
    [
        (["4.50", "0.25", None], pa.decimal128(10, 2), [4.5, 0.25, None]),
        (["1.00", "-2.00", "0.00"], pa.decimal128(10, 2), [1, -2, 0]),
        (["1", "0", "1"], pa.decimal256(50, 0), [1, 0, 1]),
    ],
)
def test_decimals_are_numbers(tmp_path, numbers, kind, values):
    column = pa.array([None if n is None else Decimal(n) for n in numbers], kind)
    targets = read(tmp_path, {"text": ["a", "b", "c"], "label": column}).targets
    assert targets == values
    assert list(map(type, targets or ())) == list(map(type, values))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"x\xff", b"y"]),
        pa.array([2**62, 1], pa.timestamp("ms")),
        pa.array([1, 2], pa.timestamp("ns")),
        pa.array([2**62, 1], pa.timestamp("us")),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([[{"a": 1}], []]),
        pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8())),
    ],
    ids=lambda column: str(column.type),
)
def test_what_is_no_text_and_no_label_is_refused(tmp_path, column):
    columns = {"text": ["a", "b"], "other": column}
    with pytest.raises(
        DataError, match=r"rows\.parquet:1: the (text is not a string|cell is)|cannot be read"
    ):
        usable_texts(read(tmp_path, columns, text="other", label=""), Data())
    with pytest.raises(DataError, match=r"parquet:1: the (label is neither|cell is)|cannot be"):
        learn_labels(read(tmp_path, columns, label="other"), Data(), Known())
    # A column that nobody asked for may be anything.
    assert read(tmp_path, columns, label="").texts == ["a", "b"]


LABEL = {"names": ["neg", "pos "], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("feature", "targets", "names"),
    [
        (LABEL, [1, 0, -1, None], ["pos", "neg", "-1", None]),
        ({"feature": LABEL, "_type": "Sequence"}, [[1, 0], [-1], [], None],
         [["pos", "neg"], ["-1"], [], None]),
        ([LABEL], [[1], [0], [], [1]], [["pos"], ["neg"], [], ["pos"]]),
    ],
)  # fmt: skip
def test_class_labels_of_datasets(tmp_path, feature, targets, names):
    rows = read(tmp_path, {"text": ["a"] * 4, "label": targets}, {"label": feature})
    assert rows.targets == names
    assert rows.class_names == {"label": ("neg", "pos")}


@pytest.mark.parametrize("features", [[], "x", {"label": {"names": 3}}, {"label": None}, {"x": {}}])
def test_other_metadata_is_ignored(tmp_path, features):
    rows = read(tmp_path, {"text": ["a", "b"], "label": [1, 0]}, features)
    assert (rows.targets, rows.class_names) == ([1, 0], {})


def test_a_file_of_the_datasets_library(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])}
    )
    data = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features)
    data.to_parquet(tmp_path / "rows.parquet")
    rows = read_rows(tmp_path / "rows.parquet", {"text": "text", "label": "label"})
    assert (rows.targets, rows.class_names) == (["z", "a"], {"label": ("z", "a")})


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_arrow_files_and_streams(tmp_path, compression):
    """With the names of labels, batch by batch; what was cut off is told, not left out."""
    features = {"info": {"features": {"label": LABEL}}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1], "other": [{}] * 3})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    for open_writer in (pa.ipc.new_file, pa.ipc.new_stream):
        path = tmp_path / f"{open_writer.__name__}.arrow"
        with open_writer(path, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=1)
        rows = read_rows(path, {"text": "text", "label": "label"})
        assert (rows.texts, rows.targets) == (["a", "b", "c"], ["pos", "neg", "-1"])
        assert (rows.lines, rows.class_names) == ([1, 2, 3], {"label": ("neg", "pos")})
        with pytest.raises(DataError, match=r"no column 'txt'. Did you mean 'text'"):
            read_rows(path, {"text": "txt"})
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(DataError, match="cannot be read as Arrow"):
            read_rows(path, {"text": "text"})


def test_an_id_without_a_name(tmp_path):
    columns = {"text": ["a", "b", "c"], "label": [0, 1, 2]}
    message = refusal(tmp_path, columns, {"label": LABEL})
    assert "rows.parquet:3: the label 2 is out of range. Expected an id from 0 to 1" in message


def test_columns(tmp_path):
    columns = {"text": ["a"], "b.c": ["b"], "label": ["x"]}
    rows = read(tmp_path, columns, text_pair="b.c", label="")
    assert (rows.pairs, rows.targets) == (["b"], None)
    message = refusal(tmp_path, columns, text="txt")
    assert (
        "there is no column 'txt'. Did you mean 'text'? Columns: 'text', 'b.c', 'label'." in message
    )


def test_tags_and_answers(tmp_path):
    columns = {
        "tokens": [["New", "York"], ["a"]],
        "ner_tags": [[0, 1], [-1]],
        "answers": [{"text": ["York"], "answer_start": [4]}, None],
    }
    table = pa.table(columns)
    info = {"info": {"features": {"ner_tags": {"feature": {"names": ["B-LOC", "I-LOC"]}}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = read_rows(
        tmp_path / "rows.parquet", {"tokens": "tokens", "tags": "ner_tags", "answers": "answers"}
    )
    assert rows.columns == {
        "tokens": columns["tokens"],
        "tags": [["B-LOC", "I-LOC"], ["-1"]],
        "answers": columns["answers"],
    }
    assert rows.class_names == {"tags": ("B-LOC", "I-LOC")}
