"""pytorch_model.bin: values of strided and shared tensors, and files that lie about themselves."""

from __future__ import annotations

import io
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.weights.formats.pytorch_bin import FORMAT
from tests.weights.torch_files import (
    MAGIC,
    SYSTEM,
    legacy_file,
    number,
    state_dict,
    tensor,
    text,
    tuple_of,
    zip_file,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"
SIX = np.arange(6, dtype="<f4").tobytes()


def _read(tmp_path: Path, data: bytes):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    return FORMAT.read(tmp_path)


def _refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        _read(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'pytorch_model.bin'}: ")
    assert "\n" not in message and len(message) < 600
    return message


def _zip(pickled: bytes, **entries: bytes) -> bytes:
    return zip_file({"data.pkl": pickled, **{f"data/{k}": v for k, v in entries.items()}})


def _both(pickled: bytes, **storages: bytes) -> dict[str, bytes]:
    """The same state dict as a zip and as a legacy file, of float32 storages."""
    return {
        "zip": _zip(pickled, **storages),
        "legacy": legacy_file(pickled, {k: (len(v) // 4, v) for k, v in storages.items()}),
    }


VIEWS = {
    "plain": (0, (2, 3), (3, 1), [[0, 1, 2], [3, 4, 5]]),
    "transposed": (0, (3, 2), (1, 3), [[0, 3], [1, 4], [2, 5]]),
    "every second": (1, (2,), (2,), [1, 3]),
    "one column": (2, (2, 1), (3, 1), [[2], [5]]),
    "repeated": (4, (3,), (0,), [4, 4, 4]),
    "overlapping": (0, (2, 2), (1, 1), [[0, 1], [1, 2]]),
    "scalar": (5, (), (), 5),
    "empty": (6, (0, 3), (3, 1), np.zeros((0, 3))),
    "empty and huge": (0, (0, 2**40), (2**40, 1), np.zeros((0, 2**40))),
}


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_views_of_one_storage(kind, tmp_path):
    pickled = state_dict(
        **{
            name.replace(" ", "_"): tensor("FloatStorage", "0", 6, offset, shape, strides)
            for name, (offset, shape, strides, _) in VIEWS.items()
        }
    )
    read = _read(tmp_path, _both(pickled, **{"0": SIX})[kind])
    for name, (*_, expected) in VIEWS.items():
        np.testing.assert_array_equal(
            read[name.replace(" ", "_")], np.asarray(expected, np.float32), strict=True
        )


OUTSIDE = {
    "one too many": (0, (7,), (1,)),
    "offset behind the end": (7, (0,), (1,)),
    "the last by offset": (1, (6,), (1,)),
    "the last by stride": (0, (2, 3), (4, 1)),
    "a huge stride": (0, (2,), (2**61,)),
    "a huge shape": (0, (2**61,), (1,)),
    "a product beyond 64 bits": (0, (2**40, 2**40), (0, 0)),
    "many copies of one": (0, (1000, 1000), (0, 0)),
    "a huge offset": (2**61, (1,), (1,)),
}


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("what", OUTSIDE)
def test_a_tensor_outside_of_its_storage_is_refused(kind, what, tmp_path):
    pickled = state_dict(a=tensor("FloatStorage", "0", 6, *OUTSIDE[what]))
    assert "outside of its storage" in _refused(tmp_path, _both(pickled, **{"0": SIX})[kind])


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("size", [5, 7, 2**61])
def test_a_storage_of_another_size_than_its_bytes_is_refused(kind, size, tmp_path):
    pickled = state_dict(a=tensor("FloatStorage", "0", size, 0, (1,), (1,)))
    assert "0" in _refused(tmp_path, _both(pickled, **{"0": SIX})[kind])


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_missing_storage_is_refused(kind, tmp_path):
    pickled = state_dict(
        a=tensor("FloatStorage", "0", 6, 0, (1,), (1,)),
        b=tensor("FloatStorage", "1", 6, 0, (1,), (1,)),
    )
    assert "the storage '1' is missing" in _refused(tmp_path, _both(pickled, **{"0": SIX})[kind])


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_megabyte_is_not_made_of_a_line(kind, tmp_path):
    """Whatever a file declares, reading it takes memory in proportion to its bytes."""
    pickled = state_dict(
        **{
            f"t{i}": tensor("FloatStorage", "0", 2**40, 0, (2**20, 2**20), (2**20, 1))
            for i in range(50)
        }
    )
    tracemalloc.start()
    _refused(tmp_path, _both(pickled, **{"0": SIX})[kind])
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 4 * 2**20


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", "f8"),
        ("LongStorage", "i8"),
        ("IntStorage", "i4"),
        ("ShortStorage", "i2"),
        ("CharStorage", "i1"),
        ("ByteStorage", "u1"),
        ("BoolStorage", "?"),
        ("HalfStorage", "f2"),
    ],
)
def test_element_types(kind, dtype, tmp_path):
    values = np.array([0, 1, 1, 0]).astype(f"<{dtype}")
    pickled = state_dict(a=tensor(kind, "0", 4, 0, (4,), (1,)))
    for data in (
        _zip(pickled, **{"0": values.tobytes()}),
        legacy_file(pickled, {"0": (4, values.tobytes())}),
    ):
        np.testing.assert_array_equal(_read(tmp_path, data)["a"], values, strict=True)


def test_views_of_a_legacy_storage(tmp_path):
    def view(offset: int, size: int) -> bytes:
        return tuple_of(text("v"), number(offset), number(size))

    good = tensor("FloatStorage", "0", 6, 0, (2,), (1,), view(3, 2))
    read = _read(tmp_path, legacy_file(state_dict(a=good), {"0": (6, SIX)}))
    np.testing.assert_array_equal(read["a"], [3, 4])
    for offset, size in ((5, 2), (-1, 2), (0, -1), (2**61, 1)):
        bad = tensor("FloatStorage", "0", 6, 0, (1,), (1,), view(offset, size))
        said = _refused(tmp_path, legacy_file(state_dict(a=bad), {"0": (6, SIX)}))
        assert "a view outside of its storage" in said
    bad = tensor("FloatStorage", "0", 6, 0, (3,), (1,), view(3, 2))
    said = _refused(tmp_path, legacy_file(state_dict(a=bad), {"0": (6, SIX)}))
    assert "outside of its storage" in said


# What is not torch's.

GOOD = state_dict(a=tensor("FloatStorage", "0", 6, 0, (6,), (1,)))


def _overlapping() -> bytes:
    """Two entries of the directory that are the same bytes of the file."""
    data = bytearray(zip_file({"data.pkl": GOOD, "data/0": SIX, "data/1": bytes(24)}))
    first, second = data.rfind(b"archive/data/0"), data.rfind(b"archive/data/1")
    data[second - 4 : second] = data[first - 4 : first]  # the place of the local header
    return bytes(data)


def _twice() -> bytes:
    buffer = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", GOOD), ("data/0", SIX), ("data/0", bytes(24))):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def _encrypted() -> bytes:
    data = bytearray(_zip(GOOD, **{"0": SIX}))
    at = data.rfind(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


ZIPS = {
    "compressed": lambda: zip_file(
        {"data.pkl": GOOD, "data/0": SIX}, compression=zipfile.ZIP_DEFLATED
    ),
    "a bomb": lambda: zip_file(
        {"data.pkl": GOOD, "data/0": bytes(2**24)}, compression=zipfile.ZIP_BZIP2
    ),
    "encrypted": _encrypted,
    "twice": _twice,
    "several folders": lambda: zip_file({"data.pkl": GOOD, "data/0": SIX, "/other/x": b""}),
    "a path up": lambda: zip_file({"data.pkl": GOOD, "data/0": SIX, "../x": b""}),
    "a path up at the start": lambda: zip_file({"data.pkl": GOOD, "/../x": b""}),
    "an absolute path": lambda: zip_file({"data.pkl": GOOD, "//etc/x": b""}),
    "no folder": lambda: zip_file({"/data.pkl": GOOD, "/data/0": SIX}),
}


@pytest.mark.parametrize("what", ZIPS)
def test_archives_that_torch_does_not_write(what, tmp_path):
    before = set(tmp_path.parent.rglob("*"))
    said = _refused(tmp_path, ZIPS[what]())
    assert "is damaged or was made by hand" in said
    assert set(tmp_path.parent.rglob("*")) - before == {tmp_path / "pytorch_model.bin"}


def test_overlapping_entries_never_give_more_than_the_file(tmp_path):
    _refused_or_read(tmp_path, _overlapping())
    names = {f"data/{i}": bytes(1000) for i in range(50)}
    data = bytearray(zip_file({"data.pkl": GOOD, "data/0": SIX, **names}))
    size = len(data)
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        for field in (20, 24):  # both sizes of every entry
            data[at + field : at + field + 4] = (size - 100).to_bytes(4, "little")
    assert "overlap" in _refused(tmp_path, bytes(data))


def _refused_or_read(tmp_path, data):
    try:
        return _read(tmp_path, data)
    except ModelFileError as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends too early"),
        (b"PK\x03\x04", "is damaged"),
        (zip_file({"x": b""}), "a zip file without a data.pkl"),
        (zip_file({"data.pkl": GOOD, "constants.pkl": b"", "data/0": SIX}), "TorchScript"),
        (zip_file({"data.pkl": bytes(2**20 + 1)}), "expected at most 1048576"),
        (zip_file({"data.pkl": GOOD, "data/0": SIX, "byteorder": b"big"}), "big-endian"),
        (pickle.dumps({"a": 1}), "none that torch.save wrote"),
        (MAGIC + pickle.dumps({"little_endian": False}, 2), "big-endian"),
        (_zip(pickle.dumps([1], 2)), "holds no dict of tensors"),
        (_zip(pickle.dumps({"a": 1}, 2)), "no dict from names to tensors"),
        (_zip(pickle.dumps({"state_dict": {}}, 2)), "no dict from names to tensors"),
        (MAGIC + SYSTEM + GOOD + pickle.dumps(["1"], 2), "names unknown ones"),
        (MAGIC + SYSTEM + GOOD + pickle.dumps("0", 2), "names unknown ones"),
        (MAGIC + SYSTEM + GOOD + pickle.dumps(["0", "0"], 2) + b"\6" + bytes(7) + SIX, "size"),
    ],
)
def test_other_files_are_refused_with_the_reason(data, said, tmp_path):
    assert said in _refused(tmp_path, data)


def test_the_tar_format_is_refused_with_advice(tmp_path):
    with tarfile.open(tmp_path / "pytorch_model.bin", "w") as archive:
        for name in ("sys_info", "pickle", "storages"):
            (tmp_path / name).write_bytes(b"x")
            archive.add(tmp_path / name, name)
    with pytest.raises(ModelFileError, match=r"tar format.*model\.safetensors"):
        FORMAT.read(tmp_path)


# Against PyTorch itself; the golden files stand in for it where it is not installed.


def test_what_torch_saves_now(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is pinned for Python 3.11; see golden/")
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        "plain": base.view(4, 6),
        "transposed": base.view(4, 6).T,
        "steps": base[1::5],
        "expanded": base[3:4].expand(5),
        "parameter": torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16)),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "empty": torch.zeros(0, 4),
    }
    for new in (True, False):
        for protocol in (2, 4):
            torch.save(
                {"model": tensors, "epoch": 1},
                tmp_path / "pytorch_model.bin",
                _use_new_zipfile_serialization=new,
                pickle_protocol=protocol,
            )
            read = FORMAT.read(tmp_path)
            assert read.keys() == tensors.keys()
            for name, value in tensors.items():
                expected = value.detach().float().numpy()
                np.testing.assert_array_equal(
                    read[name].astype(np.float32), expected, strict=True, err_msg=name
                )


def test_a_whole_module_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is pinned for Python 3.11")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"torch\.nn\.modules\.linear\.Linear.*would run code"):
        FORMAT.read(tmp_path)
