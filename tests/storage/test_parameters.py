"""A parameter tree through Orbax: the same bits, only what is asked for, nothing that lies."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.storage.parameters import (
    describe_parameters,
    holds_parameters,
    load_parameters,
    save_parameters,
    verify_parameters,
)

TREE = {
    "a": {"10": {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, "2": {"x": np.ones(3)}},
    "b": np.array([-0.0, np.nan], np.float32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("orbax") / "params"
    save_parameters(directory, TREE)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "params")


def _struct(array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def test_the_same_bits_come_back(saved):
    assert holds_parameters(saved) and verify_parameters(saved)
    described = describe_parameters(saved)
    assert described == {
        "a/10/x": _struct(TREE["a"]["10"]["x"]),
        "a/2/x": _struct(TREE["a"]["2"]["x"]),
        "b": _struct(TREE["b"]),
    }
    read = load_parameters(saved, described)
    assert read.keys() == described.keys()
    for path, expected in (("a/10/x", TREE["a"]["10"]["x"]), ("b", TREE["b"])):
        assert type(read[path]) is np.ndarray
        assert read[path].tobytes() == expected.tobytes()


def test_only_what_is_asked_for_is_read(saved):
    wanted = {"b": _struct(TREE["b"])}
    assert list(load_parameters(saved, wanted)) == ["b"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"c": jax.ShapeDtypeStruct((2,), np.dtype("float32"))},
        {"b": jax.ShapeDtypeStruct((3,), np.dtype("float32"))},
        {"b": jax.ShapeDtypeStruct((1,), np.dtype("float32"))},
        {"a": jax.ShapeDtypeStruct((2,), np.dtype("float32"))},
    ],
)
def test_what_is_not_there_is_refused(saved, wanted):
    with pytest.raises(ModelFileError):
        load_parameters(saved, wanted)


def test_more_than_the_files_can_hold_is_not_allocated(saved, monkeypatch):
    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointer", None)  # reading would fail
    huge = {"b": jax.ShapeDtypeStruct((2**40,), np.dtype("float32"))}
    with pytest.raises(ModelFileError, match=r"declares 4398046511104 bytes"):
        load_parameters(saved, huge)


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
    assert verify_parameters(copy)


def test_links_and_missing_files_are_noticed(copy, tmp_path):
    (tmp_path / "elsewhere").write_text("x")
    (copy / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="neither a plain file"):
        verify_parameters(copy)
    (copy / "link").unlink()
    (copy / "_METADATA").unlink()
    with pytest.raises(ModelFileError, match="_METADATA is missing"):
        verify_parameters(copy)


def test_a_checkpoint_of_another_program_has_no_manifest(copy):
    (copy / "manifest.json").unlink()
    assert not verify_parameters(copy)
    assert load_parameters(copy, describe_parameters(copy)).keys() == {"a/10/x", "a/2/x", "b"}


def test_what_orbax_cannot_read_is_a_model_file_error(copy, tmp_path):
    (copy / "_METADATA").write_text("{")
    with pytest.raises(ModelFileError, match="cannot be read by Orbax"):
        describe_parameters(copy)
    with pytest.raises(ModelFileError, match="cannot be read by Orbax"):
        describe_parameters(tmp_path)
