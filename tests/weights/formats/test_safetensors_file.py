"""model.safetensors: how it is written, and headers that lie."""

from __future__ import annotations

import json
import os
import pickle
import struct

import numpy as np
import pytest
from safetensors import safe_open

from flaxbert.errors import ModelFileError
from flaxbert.weights.formats.safetensors_file import FORMAT, write_safetensors


def _refused(path) -> str:
    with pytest.raises(ModelFileError) as caught:
        FORMAT.read(path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
