"""model.safetensors, shards, and what is refused: pickle, pointers, cut files, other folders."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from flaxbert.errors import ModelFileError
from flaxbert.weights.formats.safetensors_file import read_safetensors, write_safetensors
from tests import folders
from tests.folders import assert_same_bits

INDEX = "model.safetensors.index.json"


def _refused(path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_safetensors(path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_written_bits_come_back(tmp_path):
    tensors = folders.hard_tensors()
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert_same_bits(read_safetensors(tmp_path), tensors)
    assert_same_bits(read_safetensors(tmp_path / "model.safetensors"), tensors)


def test_the_file_says_pt_and_leaves_nothing_beside_it(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros(2, np.float32)})
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_the_file_may_be_read_by_whom_the_umask_says(tmp_path):
    (tmp_path / "plain").touch()
    write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros(2, np.float32)})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.ones(2, np.float32)})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, {"a": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(read_safetensors(path)["a"], 1)


def test_shards_are_put_together(tmp_path):
    tensors = folders.hard_tensors()
    assert_same_bits(read_safetensors(folders.write_shards(tmp_path, tensors)), tensors)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/hostname", "sub/x.safetensors", "..", "", ".", "a\0b", 7]
)
def test_an_index_cannot_name_files_outside_of_the_folder(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").mkdir()
    tensors = {"a": np.zeros(1, np.float32)}
    # All of them are there, so that only the refusal can stop the read.
    save_file(tensors, tmp_path / "x.safetensors")
    save_file(tensors, folder / "sub" / "x.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert str(folder) in _refused(folder)


def test_an_index_that_names_a_missing_shard(tmp_path):
    folders.write_shards(tmp_path, folders.random_tensors())
    gone = "model-00002-of-00003.safetensors"
    (tmp_path / gone).unlink()
    assert gone in _refused(tmp_path)


def test_an_index_that_names_tensors_which_no_shard_has(tmp_path):
    folders.write_shards(tmp_path, folders.random_tensors())
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["absent.weight"] = "model-00001-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "absent.weight" in _refused(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": ["a"]}', "{", "", "null"])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    assert INDEX in _refused(tmp_path)


class _Canary:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_under_a_safetensors_name_is_refused(tmp_path):
    trap = tmp_path / "executed"
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(_Canary(trap)))
    assert "cannot be read as safetensors" in _refused(tmp_path)
    assert not trap.exists()


def test_a_git_lfs_pointer_says_what_to_do(tmp_path):
    (tmp_path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 440473133\n"
    )
    assert "git lfs pull" in _refused(tmp_path)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.arange(40, dtype=np.float32), "b": np.ones(3, np.float32)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert "cannot be read as safetensors" in _refused(tmp_path)


def test_a_shard_may_be_a_link_as_in_the_hub_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    save_file({"a": np.ones(2, np.float32)}, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to(blobs / "0123")
    np.testing.assert_array_equal(read_safetensors(snapshot)["a"], 1)


def _file(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "longer than the file": _file(_one([4], [0, 16]), length=10**6),
    "of 100 MB": _file(b"{}", length=100_000_001),
    "of an exabyte": _file(b"{}", length=2**60),
    "of a negative length": _file(b"{}", length=2**64 - 1),
    "no JSON": _file(b"{{}"),
    "a list": _file([]),
    "deep": _file(b"[" * 100_000),
    "deep maps": _file(b'{"a":' * 100_000),
    "offsets beyond the file": _file(_one([8], [0, 32])),
    "offsets far beyond the file": _file(_one([2**58], [0, 2**60])),
    "offsets that leave bytes": _file(_one([2], [0, 8])),
    "offsets that start later": _file(_one([2], [8, 16])),
    "negative offsets": _file(_one([4], [-16, 0])),
    "turned offsets": _file(_one([4], [16, 0])),
    "overlapping tensors": _file(_one([4], [0, 16]) | {"b": _one([4], [0, 16])["a"]}),
    "a shape of other size": _file(_one([5], [0, 16])),
    "a shape beyond 64 bits": _file(_one([2**40, 2**40], [0, 16])),
    "a product that wraps to the size": _file(_one([2**62 + 1, 4], [0, 16])),
    "a negative shape": _file(_one([-1, -4], [0, 16])),
    "a shape of floats": _file(_one([4.0], [0, 16])),
    "an unknown type": _file(_one([4], [0, 16], "F33")),
    "a type that NumPy lacks": _file(_one([16], [0, 16], "F8_E8M0")),
    "a name twice": _file(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    ),
    "metadata that is no text": _file(_one([4], [0, 16]) | {"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies_is_refused(what, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HEADERS[what])
    assert "cannot be read as safetensors" in _refused(tmp_path)


def test_flipped_bits_are_refused_or_values(tmp_path):
    """The format has no checksum: one bit is one value or one name, or the file is refused."""
    path = tmp_path / "model.safetensors"
    expected = {name: np.full(4, i, np.float32) for i, name in enumerate("abcdef")}
    write_safetensors(path, expected)
    whole, source = path.read_bytes(), random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        path.write_bytes(data)
        try:
            read = read_safetensors(tmp_path)
        except ModelFileError as error:
            assert "\n" not in str(error)
            continue
        same = {a.tobytes() for a in expected.values()} & {a.tobytes() for a in read.values()}
        assert len(same) >= len(expected) - 1
