"""From the config to examples: which rows a split has, and what a user is told about them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxbert.config import Data
from flaxbert.data.checks import Labels
from flaxbert.data.sources import with_task
from flaxbert.data.splits import (
    hold_out,
    make_examples,
    read_file,
    read_split,
    read_training,
    report_on,
)
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import ConfigError, DataError
from tests.data.made import rows_of

AB = Labels("single_label", ("a", "b"))


@pytest.fixture
def files(tmp_path: Path):
    """Writes train, validation and test files, and returns a config of them."""
    for name, count in (("train", 40), ("validation", 6), ("test", 4)):
        rows = "".join(f"{name} {i},second {i},{'ab'[i % 2]}\n" for i in range(count))
        (tmp_path / f"{name}.csv").write_text("text,pair,label\n" + rows)

    def config(**fields) -> Data:
        paths = {"train": str(tmp_path / "train.csv")}
        for name in ("validation", "test"):
            if fields.pop(name, False):
                paths[name] = str(tmp_path / f"{name}.csv")
        return Data(**paths, **fields)

    return config


@pytest.fixture(scope="module")
def tokenizer(minilm) -> Tokenizer:
    return Tokenizer(minilm, vocab_size=30522, pad_token_id=0)


# --- which rows ---------------------------------------------------------------------------------


def test_training_and_validation_files(files):
    read = read_training(files(validation=True))
    train = read.train
    assert (len(train), len(read.validation[""]), read.names) == (40, 6, ())
    assert (train.texts[3], train.targets[3], train.pairs) == ("train 3", "b", None)
    assert read_training(files()).validation == {}


def test_columns_come_from_the_config(files):
    data = files(text="pair", text_pair="text", label="label")
    rows = read_file(data, data.train)
    assert (rows.texts[2], rows.pairs[2]) == ("second 2", "train 2")
    with pytest.raises(DataError, match=r"no column 'labels'\. Did you mean 'label'"):
        read_training(files(label="labels"))


def test_embedded_sentences_bring_their_label_names():
    read = read_training(Data(task="rotten_tomatoes"))
    assert (len(read.train), len(read.validation[""])) == (7676, 854)
    assert read.names == ("negative", "positive")


def test_what_training_cannot_start_from():
    with pytest.raises(ConfigError, match=r"config\.data\.train is empty: name the training file"):
        read_training(Data())
    with pytest.raises(ConfigError, match=r"config\.data\.task: .* Did you mean 'text'"):
        with_task(Data(task="texts"))
    with pytest.raises(DataError, match="no such file"):
        read_training(Data(train="nowhere.csv"))


def test_one_file_as_training_and_validation(files, tmp_path):
    data = files()
    (tmp_path / "link.csv").symlink_to(data.train)
    for other in (data.train, str(tmp_path / "link.csv")):
        with pytest.raises(DataError, match=r"config\.data\.validation=.*are one file"):
            read_training(dataclasses.replace(data, validation=other))
    with pytest.raises(DataError, match=r"config\.data\.train=.*config\.data\.test="):
        read_training(dataclasses.replace(data, test=data.train))


def test_label_names_of_the_file_come_with_it(tmp_path):
    info = {"info": {"features": {"label": {"names": ["z", "a"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["x", "y"], "label": [0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "train.parquet")
    read = read_training(Data(train=str(tmp_path / "train.parquet")))
    assert (read.train.targets, read.names) == (["z", "a"], ("z", "a"))


def test_texts_are_checked_as_they_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": {text}, "label": 1}}\n' for text in ('"a"', "null", '" "')))
    data = Data(train=str(path))
    for read in (read_training, lambda data: read_file(data, data.train)):
        with pytest.raises(DataError, match=r"rows\.jsonl:2: the text is missing"):
            read(data)
    data = Data(train=str(path), on_bad_row="skip", on_empty="skip")
    for rows in (read_training(data).train, read_split(data, AB, "train", 0)[""]):
        assert rows.lines == [1]
        assert rows.skipped == {"the text is missing": [2], "the text is empty": [3]}


def test_splits_by_name(files):
    data = files(validation=True, test=True)
    names = ("train", "validation", "test")
    sizes = {split: len(read_split(data, AB, split, seed=0)[""]) for split in names}
    assert sizes == {"train": 40, "validation": 6, "test": 4}


def test_held_out_rows_are_the_same_ones_later(files):
    data = files(validation_fraction=0.25)
    whole = read_training(data).train
    train, validation = hold_out(data, whole, AB, seed=9)
    assert (len(train), len(validation)) == (30, 10)
    assert sorted(validation.targets) == ["a"] * 5 + ["b"] * 5
    assert read_split(data, AB, "train", seed=9)[""].lines == train.lines
    assert read_split(data, AB, "validation", seed=9)[""].lines == validation.lines
    assert read_split(data, AB, "validation", seed=8)[""].lines != validation.lines


def test_held_out_rows_of_several_labels_a_cell(tmp_path):
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"x{i},a|b\ny{i},b\n" for i in range(10))
    )
    data = Data(train=str(tmp_path / "train.csv"), label_separator="|", validation_fraction=0.2)
    labels = Labels("multi_label", ("a", "b"))
    assert len(read_split(data, labels, "validation", seed=0)[""]) == 4


def test_splits_that_a_run_does_not_have(files):
    with pytest.raises(ConfigError, match=r"--split=test: the run has no test data\. Give"):
        read_split(files(), AB, "test", seed=0)
    with pytest.raises(ConfigError, match=r"no validation data\. Give --data=FILE"):
        read_split(files(), AB, "validation", seed=0)


# --- examples -----------------------------------------------------------------------------------


def test_examples(tokenizer):
    rows = rows_of(["hello world", "one two three four", "hi"], ["b", "a", "b"])
    split = make_examples("training", rows, AB, tokenizer, max_length=5)
    assert split.examples.labels.tolist() == [1, 0, 1]
    assert split.examples.labels.dtype == np.int32
    assert split.examples.tokens.lengths.tolist() == [4, 5, 3]
    assert split.lines == (
        "training: 3 rows; a 1 (33.3 %), b 2 (66.7 %)",
        "training: tokens a row: median 4, 90 % up to 6, 99 % up to 6, longest 6; 1 row (33.3 %) "
        "cut to 5",
    )


def test_examples_of_pairs_lists_and_numbers(tokenizer):
    rows = rows_of(["x", "y"], ["a;b", "b"], ["second", "text"])
    labels = Labels("multi_label", ("a", "b"))
    split = make_examples("test", rows, labels, tokenizer, max_length=16, separator=";")
    assert split.examples.labels.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert split.examples.tokens.lengths.tolist() == [5, 5]
    assert split.lines[0] == "test: 2 rows; a 1 (50.0 %), b 2 (100.0 %)"
    rows = rows_of(["x", "y"], ["0.5", "-2"])
    split = make_examples(
        "test", rows, Labels("regression", ("LABEL_0",)), tokenizer, max_length=16
    )
    assert split.examples.labels.tolist() == [0.5, -2.0]
    assert split.lines[0] == "test: 2 rows; values -2 to 0.5, mean -0.75"


@pytest.mark.parametrize(
    ("texts", "targets", "said"),
    [
        ([], [], "rows.csv: has no rows"),
        (["a", "b"], ["a", "c"], "rows.csv:3: the label is not among"),
        (["a", "b"], ["a", -1], "rows.csv:3: the label is -1"),
        (["a"], None, "rows.csv: has no label column"),
    ],
)
def test_bad_rows_never_become_examples(tokenizer, texts, targets, said):
    with pytest.raises(DataError, match=said):
        make_examples("test", rows_of(texts, targets), AB, tokenizer, max_length=16)


def test_bad_rows_can_be_left_out(tokenizer):
    rows = rows_of(["a", "b", "c"], ["a", "x", "b"])
    split = make_examples("test", rows, AB, tokenizer, max_length=16, on_bad_row="skip")
    assert split.rows.lines == [2, 4]
    assert split.targets == ["a", "b"]
    assert split.examples.labels.tolist() == [0, 1]
    assert len(split.examples.tokens) == 2


# --- the report on all splits -------------------------------------------------------------------


def test_report_on_training_and_validation(tokenizer):
    def split(name, texts, targets):
        return make_examples(name, rows_of(texts, targets), AB, tokenizer, max_length=16)

    train = split("training", ["one", "two", "three"], ["a", "b", "b"])
    validation = split("validation", ["Two ", "four"], ["b", "b"])
    report = report_on(Data(), AB, train, {"validation": validation})
    assert report.lines[:2] == train.lines
    assert report.lines[2:4] == validation.lines
    assert report.lines[4:] == (
        "validation: WARNING: no row has the label 'a'",
        "validation: WARNING: 1 of 2 texts also stand in training, 0 of them exactly: "
        "rows.csv:2 = rows.csv:3; the metrics will be too optimistic",
    )
    assert set(report.values) == {"training", "validation", "labels", "validation_in_training"}
    assert report_on(Data(), AB, train, {}).values.keys() == {"training", "labels"}
    json.dumps(report.values, allow_nan=False)
    message = r"^validation: 1 of 2 texts also stand in training.*\. Remove them.*on_leak=warn"
    with pytest.raises(DataError, match=message):
        report_on(Data(on_leak="error"), AB, train, {"validation": validation})
    clean = split("validation", ["five", "six"], ["a", "b"])
    assert len(report_on(Data(on_leak="error"), AB, train, {"validation": clean}).lines) == 4
