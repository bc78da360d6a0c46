"""Data sets of the hub, read from folders laid out like one: splits, columns, labels, errors."""

from __future__ import annotations

import dataclasses
import json
import os

import datasets
import pytest

from flaxbert.config import Data
from flaxbert.data.checks import Labels
from flaxbert.data.sources import with_task
from flaxbert.data.sources.glue import AX, GLUE
from flaxbert.data.sources.hub_datasets import open_dataset
from flaxbert.errors import ConfigError, DataError
from tests.data.made import read_split, read_training
from tests.glue_data import ROWS, write_glue


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("data") / "glue")


def _task(glue, name: str) -> Data:
    return with_task(Data(task=name, dataset=str(glue)))


@pytest.mark.parametrize("name", GLUE)
def test_every_glue_task_is_read_as_the_table_says(glue, name):
    row, data = GLUE[name], _task(glue, name)
    read = read_training(data)
    assert list(read.validation) == list(row.validation)
    assert read.names == row.labels
    for split in (read.train, *read.validation.values()):
        assert (split.pairs is not None) == bool(row.text_pair)
        assert all(isinstance(text, str) for text in split.texts)
        if row.labels:  # by name, whatever the ids
            assert set(split.targets) == set(row.labels)
        else:
            assert all(isinstance(target, float) for target in split.targets)
    assert len(read.train) == ROWS["train"]
    tests = read_split(data, Labels("single_label", row.labels), "test", 0)
    assert list(tests) == list(row.test)
    # Hidden, as on the hub.
    assert {str(t) for rows in tests.values() for t in rows.targets} <= {"-1", "-1.0"}


def test_ax_is_a_test_split_of_mnli(glue):
    labels = Labels("single_label", GLUE["mnli"].labels)
    rows = read_split(_task(glue, "mnli"), labels, AX, 0)[""]
    assert len(rows) == ROWS["test"] and rows.pairs is not None
    assert f"({AX})" in rows.where(0)
    with pytest.raises(ConfigError, match="no split 'ax'"):
        read_split(_task(glue, "rte"), labels, AX, 0)
    with pytest.raises(ConfigError, match="no training data"):
        with_task(Data(task=AX))


def test_one_split_of_mnli_by_its_own_name(glue):
    labels = Labels("single_label", GLUE["mnli"].labels)
    rows = read_split(_task(glue, "mnli"), labels, "validation_mismatched", 0)
    assert [len(part) for part in rows.values()] == [ROWS["validation"]]


def test_what_a_task_decides_cannot_be_said_again():
    for field in ("text", "label", "train", "validation_fraction", "dataset_config", "problem"):
        value = 0.5 if field == "validation_fraction" else "regression"
        with pytest.raises(ConfigError, match=f"config.data.{field} has no effect"):
            with_task(dataclasses.replace(Data(task="sst2"), **{field: value}))
    with pytest.raises(ConfigError, match=r"config.data.dataset has no effect"):
        with_task(Data(task="rotten_tomatoes", dataset="x"))


def _write(folder, name, columns, features=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return folder


def test_splits_by_file_names_without_a_card(tmp_path):
    columns = {"text": ["a", "b"], "label": ["x", "y"]}
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        _write(tmp_path, f"data/{name}.parquet", columns)
    data = Data(dataset=str(tmp_path))
    found = open_dataset(data, "", "")
    assert {split: len(files) for split, files in found.files.items()} == {"train": 2, "test": 1}
    read = read_training(data)
    assert len(read.train) == 4 and read.validation == {} and read.revision == ""
    held = read_training(dataclasses.replace(data, validation="test")).validation
    assert len(held[""]) == 2


def test_validation_is_found_or_held_out(tmp_path):
    columns = {"text": ["a", "b"], "label": ["x", "y"]}
    for name in ("train", "validation"):
        _write(tmp_path, f"{name}.parquet", columns)
    data = Data(dataset=str(tmp_path))
    assert len(read_training(data).validation[""]) == 2
    assert read_training(dataclasses.replace(data, validation_fraction=0.5)).validation == {}


def test_lists_of_labels_by_name(tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.List(datasets.ClassLabel(names=["calm", "glad", "sad"])),
    )
    _write(tmp_path, "train.parquet", {"text": ["a", "b"], "label": [[0, 2], []]}, features)
    assert read_training(Data(dataset=str(tmp_path))).train.targets == [["calm", "sad"], []]


def test_a_card_with_several_configurations(tmp_path):
    _write(tmp_path, "en/train.parquet", {"text": ["a"], "label": [1]})
    card = "---\nconfigs:\n- config_name: {}\n  data_files: en/train.parquet\n"
    card += "- config_name: fr\n  data_files:\n  - split: train\n    path: fr/*\n---\n"
    (tmp_path / "README.md").write_text(card.format("en"))
    data = Data(dataset=str(tmp_path))
    with pytest.raises(ConfigError, match="has the configurations 'en', 'fr'"):
        open_dataset(data, "", "")
    with pytest.raises(ConfigError, match=r"no configuration 'end'. Did you mean 'en'"):
        open_dataset(data, "end", "")
    with pytest.raises(DataError, match="no Parquet files of fr"):
        open_dataset(data, "fr", "")
    assert open_dataset(data, "en", "").files.keys() == {"train"}
    (tmp_path / "README.md").write_text(card.format("default"))
    assert open_dataset(data, "", "").files.keys() == {"train"}


def test_a_card_that_is_no_card(tmp_path):
    _write(tmp_path, "train.parquet", {"text": ["a"], "label": [1]})
    headers = ["configs: [", "- 1", "configs: foo", "configs: [foo]", "configs: [{data_files: 5}]"]
    headers += ["configs: [{data_files: [{split: 1, path: 5}]}]", "configs: [{config_name: x}]"]
    for text in ("no header", *(f"---\n{header}\n---\n" for header in headers)):
        (tmp_path / "README.md").write_text(text)
        assert open_dataset(Data(dataset=str(tmp_path)), "", "").files.keys() == {"train"}


def test_a_program_is_not_run(tmp_path):
    canary = tmp_path / "ran"
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(canary)!r}, 'w')")
    with pytest.raises(DataError, match="a program is not run"):
        open_dataset(Data(dataset=str(folder)), "", "")
    assert not canary.exists()


def test_errors_name_what_is_there(tmp_path):
    _write(tmp_path, "train.parquet", {"text": ["a"], "labels": [1]})
    data = Data(dataset=str(tmp_path))
    with pytest.raises(DataError, match=r"no column 'label'. Did you mean 'labels'"):
        read_training(data)
    with pytest.raises(ConfigError, match=r"no split 'tests'. Splits: 'train'"):
        read_split(data, Labels("single_label", ("0", "1")), "tests", 0)
    with pytest.raises(ConfigError, match="is for hub ids"):
        open_dataset(data, "", "main")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing that makes sense PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_training(data)
    with pytest.raises(DataError, match="expected a folder"):
        open_dataset(Data(dataset=str(tmp_path / "train.parquet")), "", "")
    for name in ("./nowhere", "a/b/c", "not a name"):
        with pytest.raises(DataError, match="no such folder"):
            open_dataset(Data(dataset=name), "", "")


@pytest.mark.parametrize("pattern", ["./d/*.parquet", "**/t*.parquet", "d/train.parquet"])
def test_patterns_of_a_card(tmp_path, pattern):
    _write(tmp_path, "d/train.parquet", {"text": ["a"], "label": [1]})
    _write(tmp_path, "train.parquet", {"text": ["b"], "label": [1]})
    card = f"---\nconfigs:\n- config_name: default\n  data_files: '{pattern}'\n---\n"
    (tmp_path / "README.md").write_text(card)
    texts = read_training(Data(dataset=str(tmp_path))).train.texts
    assert texts == (["a", "b"] if pattern.startswith("**") else ["a"])


def test_a_configuration_that_is_a_folder(tmp_path):
    for name in ("train", "validation"):
        _write(tmp_path, f"a/{name}.parquet", {"text": ["a"], "label": [1]})
    card = "---\nconfigs:\n- config_name: a\n  data_dir: a\n- config_name: b\n  data_dir: b\n---\n"
    (tmp_path / "README.md").write_text(card)
    found = open_dataset(Data(dataset=str(tmp_path)), "a", "")
    assert found.files.keys() == {"train", "validation"}


def test_a_folder_of_save_to_disk(tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["z", "a"])
    )
    parts = {
        split: datasets.Dataset.from_dict({"text": texts, "label": [0, 1]}, features=features)
        for split, texts in {"train": ["x", "y"], "validation": ["v", "w"]}.items()
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both", num_shards={"train": 2})
    read = read_training(Data(dataset=str(tmp_path / "both")))
    assert (read.train.texts, read.train.targets) == (["x", "y"], ["z", "a"])
    assert (read.validation[""].texts, read.names) == (["v", "w"], ("z", "a"))
    parts["train"].save_to_disk(tmp_path / "one")
    for folder in (tmp_path / "one", tmp_path / "both" / "train"):
        read = read_training(Data(dataset=str(folder)))
        assert (read.train.texts, read.validation) == (["x", "y"], {})
    with pytest.raises(ConfigError, match=r"no split 'test'. Splits: 'train', 'validation'"):
        read_training(Data(dataset=str(tmp_path / "both"), train="test"))
    # Nothing but the folder's own files is read, whatever it says.
    state = tmp_path / "one" / "state.json"
    state.write_text('{"_data_files": [{"filename": "../both/train/other.arrow"}]}')
    with pytest.raises(DataError, match=r"one/other.arrow: there is no such file"):
        read_training(Data(dataset=str(tmp_path / "one")))
    state.write_text("{")
    with pytest.raises(DataError, match=r"is not valid JSON.*Save the data set again"):
        read_training(Data(dataset=str(tmp_path / "one")))


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "a/b", "/", "a\0"])
def test_a_split_is_a_folder_beside_its_list(tmp_path, name):
    """Else files above the data set's own folder would be read."""
    data = datasets.Dataset.from_dict({"text": ["a"], "label": [1]})
    for folder in ("secret", "set", "set/a/b"):
        data.save_to_disk(tmp_path / folder)
    data.save_to_disk(tmp_path)
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    data.save_to_disk(tmp_path / "set" / "train")
    with pytest.raises(DataError, match=r"dataset_dict.json: .* is no name of a split. Expected"):
        open_dataset(Data(dataset=str(tmp_path / "set")), "", "")


def test_a_configuration_is_a_folder_of_the_data_set(tmp_path):
    _write(tmp_path, "above/train.parquet", {"text": ["a"], "label": [1]})
    (tmp_path / "set").mkdir()
    for inside in ("../above", "./../above/", str(tmp_path / "above")):
        card = f"---\nconfigs:\n- config_name: a\n  data_dir: {inside}\n---\n"
        (tmp_path / "set" / "README.md").write_text(card)
        with pytest.raises(DataError, match=r"README.md: data_dir .* is no folder of the data set"):
            open_dataset(Data(dataset=str(tmp_path / "set")), "", "")


def test_skipped_rows_of_several_files_are_counted(tmp_path):
    """With the numbers that they have in the files end to end."""
    for number, ones in enumerate(([1, None, 0], [None, 1], [0, 5, 1])):
        columns = {"text": [f"{number}{one}" for one in ones], "a": ones, "b": [1] * len(ones)}
        _write(tmp_path, f"train-0000{number}-of-00003.parquet", columns)
    data = Data(dataset=str(tmp_path), label="a,b", on_bad_row="skip")
    rows = open_dataset(data, "", "").read("train", {"text": "text", "label": "a,b"})
    assert rows.texts == ["01", "00", "11", "20", "21"]
    assert rows.targets == [["a", "b"], ["b"], ["a", "b"], ["b"], ["a", "b"]]
    assert list(rows.lines) == [1, 3, 5, 6, 8]
    assert rows.skipped == {"a label's column holds neither 0 nor 1": [2, 4, 7]}
    assert read_training(data).train.skipped == rows.skipped
    with pytest.raises(DataError, match=r"00000-of-00003.parquet:2: the column 'a' holds None"):
        read_training(dataclasses.replace(data, on_bad_row="error"))


@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co/datasets/own/set", "hf://datasets/own/set/data/train.parquet",
     "https://hf.co/datasets/own/set/tree/main"],
)  # fmt: skip
def test_an_address_of_the_hub(address):
    with pytest.raises(DataError, match=r"Write config.data.dataset=own/set to train"):
        open_dataset(Data(dataset=address), "", "")


def test_changed_files_are_read_again(tmp_path):
    """Whatever the clock of the file says: nothing of the data is kept from one run to the next."""
    path = tmp_path / "train.parquet"
    for word in ("old", "new"):
        _write(tmp_path, "train.parquet", {"text": [word], "label": [1]})
        os.utime(path, (1, 1))
        assert read_training(Data(dataset=str(tmp_path))).train.texts == [word]


def test_classes_are_numbered_as_the_data_set_does(tmp_path):
    names = ["World", "Sports", "Business", "Sci"]
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=names)
    )
    _write(tmp_path, "train.parquet", {"text": ["a", "b"], "label": [2, 0]}, features)
    read = read_training(Data(dataset=str(tmp_path)))
    assert (read.train.targets, read.names) == (["Business", "World"], tuple(names))
