"""Google's checkpoints: tables put together here, so that any byte can be a lie."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.weights.formats.tf1 import FORMAT
from flaxbert.weights.sstable import MAGIC, TableError, read_table, read_varint

# A writer of the format, kept as plain as its definition.


def varint(value: int) -> bytes:
    data = b""
    while value >= 0x80:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def field(number: int, value: int | bytes, kind: int | None = None) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if kind == 5:
        return varint(number << 3 | 5) + struct.pack("<I", value)
    return varint(number << 3) + varint(value)


def block(items: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """A block without shared prefixes, and its trailer."""
    body = b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in items
    )
    return sealed(body + struct.pack("<II", 0, 1), kind)


def sealed(body: bytes, kind: int = 0) -> bytes:
    return body + bytes([kind]) + b"sum?"  # the checksum, which is not compared


def table(*blocks: bytes, index: bytes | None = None) -> bytes:
    data, handles = b"", []
    for number, content in enumerate(blocks):
        handles.append((b"%06d" % number, varint(len(data)) + varint(len(content) - 5)))
        data += content
    index = block(handles) if index is None else index
    meta = block([])
    footer = varint(len(data)) + varint(len(meta) - 5)
    data += meta
    footer += varint(len(data)) + varint(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + MAGIC


HEADER = field(1, 1) + field(3, field(1, 1))


def entry(
    shape: tuple[int, ...], size: int, offset: int = 0, dtype: int = 1, shard: int = 0
) -> bytes:
    dims = b"".join(field(2, field(1, length)) for length in shape)
    parts = [field(1, dtype), field(2, dims)]
    parts += [field(n, value) for n, value in ((3, shard), (4, offset), (5, size)) if value]
    return b"".join(parts) + field(6, 0, kind=5)  # the checksum


VALUES = np.arange(6, dtype="<f4").tobytes()


def write(directory: Path, entries: dict[bytes, bytes], data: bytes = VALUES) -> Path:
    items = sorted({b"": HEADER, **entries}.items())
    (directory / "bert_model.ckpt.index").write_bytes(table(block(items)))
    (directory / "bert_model.ckpt.data-00000-of-00001").write_bytes(data)
    return directory


def _refused(directory: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        FORMAT.read(directory)
    message = str(caught.value)
    assert message.startswith(str(directory))
    assert "\n" not in message and len(message) < 500
    return message


def test_what_the_writer_of_this_test_writes(tmp_path):
    write(tmp_path, {b"bert/pooler/dense/kernel": entry((2, 3), 24)})
    (name, array), *rest = FORMAT.read(tmp_path).items()
    assert not rest and name == "bert.pooler.dense.weight"
    np.testing.assert_array_equal(array, np.arange(6, dtype=np.float32).reshape(2, 3).T)


@pytest.mark.parametrize(
    "name",
    [
        b"bert/pooler/dense/kernel/adam_m",
        b"bert/pooler/dense/kernel/adam_v",
        b"bert/pooler/dense/kernel/AdamWeightDecayOptimizer",
        b"bert/pooler/dense/kernel/AdamWeightDecayOptimizer_1",
        b"AdamWeightDecayOptimizer/learning_rate",
        b"beta1_power",
        b"global_step",
        b"good_steps",
        b"loss_scale",
        b"current_loss_scale",
    ],
)
def test_what_training_leaves_is_dropped(name, tmp_path):
    entries = {b"bert/pooler/dense/bias": entry((6,), 24), name: entry((6,), 24)}
    assert list(FORMAT.read(write(tmp_path, entries))) == ["bert.pooler.dense.bias"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("output_weights", "classifier.weight"),
        ("output_bias", "classifier.bias"),
        ("cls/squad/output_weights", "qa_outputs.weight"),
        ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
        ("cls/predictions/output_bias", "cls.predictions.bias"),
        ("bert/encoder/layer_11/output/LayerNorm/gamma", "bert.encoder.layer.11.output.LayerNorm"),
        ("something/else", "something.else"),  # named in the error that lists what does not fit
    ],
)
def test_names(name, expected, tmp_path):
    (found,) = FORMAT.read(write(tmp_path, {name.encode(): entry((3, 2), 24)})).items()
    assert found[0] in (expected, f"{expected}.weight")
    assert found[1].shape == (3, 2)


@pytest.mark.parametrize(
    ("number", "dtype"), [(1, "f4"), (2, "f8"), (3, "i4"), (9, "i8"), (19, "f2")]
)
def test_data_types(number, dtype, tmp_path):
    data = np.arange(4).astype(f"<{dtype}").tobytes()
    entries = {b"x/bias": entry((4,), len(data), dtype=number)}
    read = FORMAT.read(write(tmp_path, entries, data))["x.bias"]
    np.testing.assert_array_equal(read, np.arange(4).astype(dtype), strict=True)


ENTRIES = {
    "too few bytes": (entry((6,), 20), "has 20 bytes for float32[6]"),
    "a huge shape": (entry((2**39, 2**39), 24), "has 24 bytes"),
    "a huger shape": (entry((2**62,), 24), "wrong shape"),
    "a negative shape": (entry((2**64 - 1,), 24), "wrong shape"),
    "many axes": (entry((1,) * 9, 4), "more than 8 axes"),
    "beyond the file": (entry((6,), 24, offset=1), "is cut off"),
    "far beyond the file": (entry((6,), 24, offset=2**61), "is cut off"),
    "a negative place": (entry((6,), 24, offset=2**64 - 1), "negative size or place"),
    "huge": (entry((2**38,), 2**40), "is cut off"),
    "another data file": (entry((6,), 24, shard=1), "data-00001-of-00001: is missing"),
    "text": (entry((6,), 24, dtype=7), "data type 7"),
    "quantized": (entry((24,), 24, dtype=11), "data type 11"),
    "slices": (entry((6,), 24) + field(7, b""), "stored in slices"),
    "a number beyond 64 bits": (b"\x08" + b"\xff" * 9 + b"\x02", "longer than 64 bits"),
    "a number without end": (b"\x08" + b"\xff" * 30, "longer than 64 bits"),
    "a number cut off": (b"\x08\xff", "cut off"),
    "a field beyond the entry": (b"\x12\xff\x01", "is damaged"),
    "a group": (b"\x0b", "is damaged"),
    "a fixed number cut off": (b"\x35\x01", "is damaged"),
}


@pytest.mark.parametrize("what", ENTRIES)
def test_entries_that_lie(what, tmp_path):
    value, said = ENTRIES[what]
    tracemalloc.start()
    assert said in _refused(write(tmp_path, {b"x/bias": value}))
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "no number of data files"),
        (field(1, 0), "no number of data files"),
        (field(1, 10**6), "no number of data files"),
        (field(1, b"x"), "no number of data files"),
        (field(1, 1) + field(2, 1), "big-endian"),
    ],
)
def test_headers_that_lie(header, said, tmp_path):
    assert said in _refused(write(tmp_path, {b"": header, b"x/bias": entry((6,), 24)}))


def test_a_data_file_is_named_by_the_index_s_own_name(tmp_path):
    """There is no way to name a file in another folder; a missing one is named."""
    write(tmp_path, {b"../x/bias": entry((6,), 24)})
    assert list(FORMAT.read(tmp_path)) == ["...x.bias"]
    (tmp_path / "bert_model.ckpt.data-00000-of-00001").unlink()
    assert "bert_model.ckpt.data-00000-of-00001: is missing" in _refused(tmp_path)


def test_a_variable_under_two_names_is_refused(tmp_path):
    one = entry((6,), 24)
    write(tmp_path, {b"x/LayerNorm/beta": one, b"x/LayerNorm/bias": one})
    assert "there under two names" in _refused(tmp_path)


def test_the_newest_of_several_is_read_and_strangers_are_refused(tmp_path):
    for step in (9, 100, 20):
        write(tmp_path, {b"x/bias": entry((6,), 24)})
        for path in tmp_path.glob("bert_model*"):
            path.rename(tmp_path / path.name.replace("bert_model.ckpt", f"model.ckpt-{step}"))
    (tmp_path / "model.ckpt-9.index").write_bytes(b"")
    (tmp_path / "model.ckpt-20.index").write_bytes(b"")
    assert list(FORMAT.read(tmp_path)) == ["x.bias"]
    write(tmp_path, {b"x/bias": entry((6,), 24)})
    assert "has several checkpoints (bert_model.ckpt.index, model.ckpt-100" in _refused(tmp_path)


# The table.

ITEM = (b"key", b"value")


def test_tables_are_read_over_several_blocks():
    items = [(b"%03d" % i, b"v" * i) for i in range(200)]
    data = table(block(items[:50]), block(items[50:51]), block(items[51:]))
    assert read_table(data) == dict(items)


def test_shared_prefixes():
    body = b"\x00\x03\x01abcX" + b"\x02\x01\x01dY" + b"\x00\x01\x00z" + struct.pack("<II", 0, 1)
    assert read_table(table(sealed(body))) == {b"abc": b"X", b"abd": b"Y", b"z": b""}


TABLES = {
    "empty": (b"", "does not end as"),
    "only a footer": (bytes(40) + MAGIC, "a block lies outside"),
    "another end": (table(block([ITEM]))[:-1] + b"x", "does not end as"),
    "compressed": (table(block([ITEM], kind=1)), "it is compressed"),
    "the same block twice": (
        table(block([ITEM]), index=block([(b"a", b"\x00\x13"), (b"b", b"\x00\x13")])),
        "not in order",
    ),
    "the index as its own block": (
        table(block([ITEM]), index=block([(b"a", b"\x23\x0f")])),
        "a block|a number|keys|an entry",
    ),
    "keys out of order": (table(block([(b"b", b""), (b"a", b"")])), "not in order"),
    "a key twice": (table(block([(b"a", b""), (b"a", b"")])), "not in order"),
    "a block outside": (table(index=block([(b"a", b"\xff\xff\x7f\x05")])), "outside of the file"),
    "a huge block": (
        table(index=block([(b"a", b"\x00" + varint(2**63))])),
        "outside of the file",
    ),
    "a handle cut off": (table(index=block([(b"a", b"\x00")])), "cut off"),
    "no restarts": (table(sealed(b"")), "more restarts"),
    "many restarts": (table(sealed(struct.pack("<I", 2**31))), "more restarts"),
    "more shared than there is": (
        table(sealed(b"\x05\x01\x00a" + struct.pack("<II", 0, 1))),
        "longer than its block",
    ),
    "a key beyond the block": (
        table(sealed(b"\x00\x7f\x00a" + struct.pack("<II", 0, 1))),
        "longer than its block",
    ),
    "a value beyond the block": (
        table(sealed(b"\x00\x01\x7fa" + struct.pack("<II", 0, 1))),
        "longer than its block",
    ),
    "a length beyond 64 bits": (
        table(sealed(b"\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + struct.pack("<II", 0, 1))),
        "longer than 64 bits",
    ),
    "a long key": (table(block([(b"k" * 5000, b"")])), "longer than its block"),
}


@pytest.mark.parametrize("what", TABLES)
def test_tables_that_lie(what):
    data, said = TABLES[what]
    with pytest.raises(TableError) as caught:
        read_table(data)
    assert any(part in str(caught.value) for part in said.split("|"))


def test_a_table_that_grows_while_it_is_read():
    """Three bytes an entry, each repeating a long key: quadratic, were keys not limited."""
    long = varint(1000)
    body = b"\x00" + long + b"\x00" + b"k" * 1000 + (long + b"\x01\x00a") * 200_000
    data = table(sealed(body + struct.pack("<II", 0, 1)))
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(TableError, match="not in order"):
        read_table(data)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()
    assert time.perf_counter() - start < 20


def test_more_entries_than_a_model_has(monkeypatch):
    monkeypatch.setattr("flaxbert.weights.sstable._MAX_ENTRIES", 5)
    items = [(b"%d" % i, b"") for i in range(6)]
    assert len(read_table(table(block(items[:5])))) == 5
    with pytest.raises(TableError, match="more than 5 entries"):
        read_table(table(block(items)))


def test_varints():
    for value in (0, 1, 127, 128, 300, 2**32, 2**64 - 1):
        assert read_varint(b"x" + varint(value) + b"y", 1) == (value, 1 + len(varint(value)))
    with pytest.raises(TableError):
        read_varint(b"", 0)
