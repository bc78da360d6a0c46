"""From the config to rows: which rows a split has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxbert.config import Data
from flaxbert.data.checks import Labels
from flaxbert.data.sources import with_task
from flaxbert.errors import ConfigError, DataError
from tests.data.made import hold_out, read_file, read_split, read_training

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
