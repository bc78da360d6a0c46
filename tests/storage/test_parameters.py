"""A parameter tree through Orbax: the same bits, only what is asked for, nothing that lies."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.storage import parameters
from flaxbert.storage.parameters import load_parameters, save_parameters, verify_parameters

ARRAYS = {
    "a/10/x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/2/x": np.ones(3),
    "b": np.array([-0.0, np.nan], np.float32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("orbax") / "params"
    save_parameters(directory, ARRAYS)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "params")


def test_the_same_bits_come_back(saved):
    verify_parameters(saved, required=True)
    read = load_parameters(saved)
    assert read.keys() == ARRAYS.keys()
    for path, expected in ARRAYS.items():
        assert type(read[path]) is np.ndarray
        assert (read[path].dtype, read[path].shape) == (expected.dtype, expected.shape)
        assert read[path].tobytes() == expected.tobytes()


def test_only_what_is_asked_for_is_read(saved):
    assert list(load_parameters(saved, "a/10/")) == ["x"]


def test_more_than_the_files_can_hold_is_not_allocated(saved, monkeypatch):
    monkeypatch.setattr(parameters, "_MAX_RATIO", 0)
    monkeypatch.setattr(parameters, "_SPARE", 55)
    with pytest.raises(ModelFileError, match=r"declares 56 bytes of parameters, its files have"):
        load_parameters(saved)
    assert load_parameters(saved, "b")  # 8 bytes


def test_a_flipped_bit_in_any_file_is_noticed(copy):
    for path in sorted(copy.rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        whole = path.read_bytes()
        data = bytearray(whole)
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="is damaged"):
            verify_parameters(copy)
        path.write_bytes(whole)
    verify_parameters(copy)


def test_pipes_and_missing_files_are_noticed(copy):
    os.mkfifo(copy / "pipe")
    with pytest.raises(ModelFileError, match="neither a plain file"):
        verify_parameters(copy)
    (copy / "pipe").unlink()
    (copy / "_METADATA").unlink()
    with pytest.raises(ModelFileError, match="_METADATA is missing"):
        verify_parameters(copy)


def test_a_checkpoint_of_another_program_has_no_manifest(copy):
    (copy / "manifest.json").unlink()
    verify_parameters(copy)
    assert load_parameters(copy).keys() == ARRAYS.keys()
    with pytest.raises(ModelFileError, match=r"checkpoint is damaged: manifest\.json is missing"):
        verify_parameters(copy, required=True)


def test_what_orbax_cannot_read_is_a_model_file_error(copy, tmp_path):
    (copy / "_METADATA").write_text("{")
    with pytest.raises(ModelFileError, match="cannot be read by Orbax"):
        load_parameters(copy)
    with pytest.raises(ModelFileError, match="cannot be read by Orbax"):
        load_parameters(tmp_path)
