"""flax_model.msgpack: the bytes that Flax reads and writes, and bytes that lie."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization

from flaxbert.errors import ModelFileError
from flaxbert.weights.formats.flax_msgpack import FORMAT


def _read(tmp_path: Path, data: bytes):
    (tmp_path / "flax_model.msgpack").write_bytes(data)
    return FORMAT.read(tmp_path)


def _refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        _read(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(str(tmp_path))
    assert "\n" not in message and len(message) < 600
    return message


def _ndarray(shape, dtype, buffer: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, buffer), use_bin_type=True))


def _packed(value) -> bytes:
    return msgpack.packb(value, strict_types=True)


TREE = {
    "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "b": {"bias": np.array([1, -0.0], np.float16), "scale": np.ones((1, 2, 3), np.float64)},
    "c": {"embedding": np.array([[1.5]], ml_dtypes.bfloat16)},
    "count": np.int32(7),
    "inner": {"10": {"bias": np.zeros(0, np.float32)}, "2": {"bias": np.ones((), np.float32)}},
}


def test_what_flax_writes_is_read(tmp_path):
    read = _read(tmp_path, serialization.to_bytes(TREE))
    expected = {
        "a/kernel": TREE["a"]["kernel"],
        "b/bias": TREE["b"]["bias"],
        "b/scale": TREE["b"]["scale"],
        "c/embedding": TREE["c"]["embedding"],
        "count": np.asarray(TREE["count"]),
        "inner/10/bias": TREE["inner"]["10"]["bias"],
        "inner/2/bias": TREE["inner"]["2"]["bias"],
    }
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_arrays_in_chunks(tmp_path, monkeypatch):
    big = np.arange(1000, dtype=np.float32).reshape(10, 100)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 256)
    data = serialization.to_bytes({"layer": {"kernel": big, "bias": big[0]}})
    assert data.count(b"__msgpack_chunked_array__") == 2
    read = _read(tmp_path, data)
    np.testing.assert_array_equal(read["layer/kernel"], big, strict=True)
    np.testing.assert_array_equal(read["layer/bias"], big[0], strict=True)


def test_what_is_written_flax_restores(tmp_path):
    tree = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T}, "b": np.ones(1)}
    FORMAT.write(tmp_path, {"b": tree["b"], "a/kernel": tree["a"]["kernel"]})
    written = (tmp_path / "flax_model.msgpack").read_bytes()
    assert written == serialization.to_bytes(tree)
    restored = serialization.msgpack_restore(written)
    np.testing.assert_array_equal(restored["a"]["kernel"], tree["a"]["kernel"], strict=True)


def test_a_train_state_gives_its_parameters(tmp_path):
    state = {"step": 3, "params": {"bias": np.ones(2)}, "opt_state": {"0": None}}
    assert list(_read(tmp_path, serialization.to_bytes(state))) == ["bias"]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"embeddings": {"layer_norm": {"gamma": np.ones(2)}}}, "embeddings/layer_norm/gamma"),
        ({"attention": {"self": {"query": {"kernel": np.ones((2, 2, 2))}}}}, "query/kernel"),
    ],
)
def test_trees_from_before_april_2021_are_refused(tmp_path, tree, said):
    message = _refused(tmp_path, serialization.to_bytes(tree))
    assert "before 4.6 (April 2021" in message and said in message


LIES = {
    "not msgpack": (b"\xc1", "no tree of Flax arrays"),
    "empty": (b"", "no tree of Flax arrays"),
    "two of them": (_packed({}) + _packed({}), "extra data"),
    "a list": (_packed([1]), "max_array_len"),
    "a number": (_packed(7), "a int at the top"),
    "an array at the top": (_packed(_ndarray((1,), "float32", b"abcd")), "a ndarray at the top"),
    "text as a leaf": (_packed({"a": "text"}), "a str at 'a'"),
    "bytes as a leaf": (_packed({"a": b"bytes"}), "max_bin_len"),
    "nothing as a leaf": (_packed({"a": None}), "a NoneType at 'a'"),
    "a number as a name": (_packed({1: 2}), "int is not allowed for map key"),
    "bytes as a name": (_packed({b"a": 2}), "max_bin_len"),
    "a long name": (_packed({"a" * 1001: {}}), "max_str_len"),
    "a name that is no text": (b"\x81\xa1\xff\x80", "no tree of Flax arrays"),
    "an unknown extension": (_packed({"a": msgpack.ExtType(4, b"x")}), "extension type 4"),
    "a timestamp": (b"\x81\xa1a\xd6\xff" + bytes(4), "a Timestamp at 'a'"),
    "a complex number": (
        _packed({"a": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}),
        "the extension type 2",
    ),
    "an empty extension": (_packed({"a": msgpack.ExtType(1, b"")}), "no tree of Flax arrays"),
    "dtype object": (_packed({"a": _ndarray((1,), "object", bytes(8))}), "type 'object'"),
    "dtype O": (_packed({"a": _ndarray((1,), "O", bytes(8))}), "type 'O'"),
    "a structured dtype": (_packed({"a": _ndarray((1,), "f4,O", bytes(12))}), "type 'f4,O'"),
    "a dtype of text": (_packed({"a": _ndarray((1,), "<U9999999", b"")}), "type '<U9999999'"),
    "a dtype that is a list": (_packed({"a": _ndarray((1,), ["a"], b"")}), "unhashable"),
    "text as buffer": (_packed({"a": _ndarray((1,), "int8", "a")}), "max_str_len|without bytes"),
    "too few bytes": (_packed({"a": _ndarray((2,), "float32", bytes(7))}), "of 7 bytes"),
    "too many bytes": (_packed({"a": _ndarray((2,), "float32", bytes(9))}), "of 9 bytes"),
    "a huge shape": (_packed({"a": _ndarray((2**39, 2**39), "float32", b"")}), "of 0 bytes"),
    "a huger shape": (_packed({"a": _ndarray((2**62,), "float32", b"")}), "of 0 bytes"),
    "a negative shape": (_packed({"a": _ndarray((-1, -4), "int8", bytes(4))}), "no tree"),
    "a shape of floats": (_packed({"a": _ndarray((1.0,), "int8", bytes(1))}), "wrong shape"),
    "a shape of many axes": (_packed({"a": _ndarray((1,) * 9, "int8", bytes(1))}), "max_array_len"),
    "a shape that is a number": (_packed({"a": _ndarray(4, "int8", bytes(4))}), "not iterable"),
    "a shape that makes a long text": (
        _packed({"a": _ndarray((2**39, "a"), "int8", b"")}),
        "wrong shape",
    ),
    "chunks of nothing": (
        _packed({"a": {"__msgpack_chunked_array__": True}}),
        "no tree of Flax arrays",
    ),
    "chunks that are missing": (
        _packed(
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 4},
                    "chunks": {"0": _ndarray((2,), "int8", bytes(2))},
                }
            }
        ),
        "cannot reshape",
    ),
    "chunks that are no arrays": (
        _packed(
            {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": "ab"}}}
        ),
        "no tree of Flax arrays",
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_lies_are_refused_with_the_reason(what, tmp_path):
    data, said = LIES[what]
    message = _refused(tmp_path, data)
    assert any(part in message for part in said.split("|")), message


BOMBS = {
    "nested maps": lambda: b"\x81\xa1a" * 100_000 + b"\x80",
    "nested maps, 1000 deep": lambda: b"\x81\xa1a" * 1000 + b"\x80",
    "nested lists": lambda: b"\x91" * 100_000,
    "a map of 4 billion": lambda: b"\xdf\xff\xff\xff\xff",
    "a list of 4 billion": lambda: b"\xdd\xff\xff\xff\xff",
    "text of 4 GB": lambda: b"\x81\xdb\xff\xff\xff\xff",
    "bytes of 4 GB": lambda: b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "an extension of 4 GB": lambda: b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "a map in an array": lambda: _packed(
        {"a": msgpack.ExtType(1, b"\x93\x90\xa4int8\xdf\xff\xff\xff\xff")}
    ),
    "an extension in an array": lambda: _packed(
        {"a": msgpack.ExtType(1, msgpack.packb(([], "int8", msgpack.ExtType(1, b"x"))))}
    ),
    "many empty maps": lambda: (
        b"\xde\x07\xd0"
        + b"".join(
            b"\xa4%04d" % i + b"\xde\x07\xd0" + b"".join(b"\xa4%04d\x80" % j for j in range(2000))
            for i in range(200)
        )
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_little_time_and_memory(bomb, tmp_path):
    data = BOMBS[bomb]()
    tracemalloc.start()
    start = time.perf_counter()
    _refused(tmp_path, data)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 48 * 2**20  # 100,000 entries of a map, a name and a place each
    assert time.perf_counter() - start < 20
