"""Pickles that try to run code, to fill the memory or to never end; and the plain ones.

Every trap is shown to work, by unpickling it for real.
"""

from __future__ import annotations

import collections
import copyreg
import io
import os
import pickle
import random
import time
import tracemalloc

import pytest

from flaxbert.errors import ModelFileError
from flaxbert.weights.pickle_reader import (
    PickledDict,
    Storage,
    TensorRecord,
    read_pickle,
)
from tests.weights.torch_files import number, state_dict, storage, tensor, text, tuple_of


def _read(data: bytes):
    return read_pickle(io.BytesIO(data), "file.bin")[0]


def _refused(data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        _read(data)
    message = str(caught.value)
    assert message.startswith("file.bin: ")
    assert "\n" not in message and len(message) < 500
    return message


PLAIN = {
    "a": 1,
    "b": [1, 255, 256, 65536, -1, 2**31, -(2**40), 1.5, True, False, None],
    "c": {"": (), "d": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))},
    "ü": collections.OrderedDict(x=[[], {}]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_containers_are_read_as_pickle_reads_them(protocol):
    assert _read(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_what_is_shared_stays_shared():
    one = [1]
    read = _read(pickle.dumps({"a": one, "b": one}, 2))
    assert read["a"] is read["b"]


def test_the_file_stands_behind_the_pickle_afterwards():
    file = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 2) + b"rest")
    assert [read_pickle(file, "f")[0] for _ in range(2)] == [1, "two"]
    assert file.read() == b"rest"


def test_a_tensor_is_only_described():
    data = b"\x80\x02" + tensor("BFloat16Storage", "7", 6, 1, (2, 2), (2, 1)) + b"."
    value, storages = read_pickle(io.BytesIO(data), "f")
    assert value == TensorRecord(Storage("7", "bfloat16", 6), 1, (2, 2), (2, 1))
    assert storages == {"7": Storage("7", "bfloat16", 6)}


# Traps.


class _Reduces:
    def __init__(self, function, *arguments):
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


class MakesFolder:
    """Makes a folder when it is created or given a state."""

    def __new__(cls, path=None):
        if path:
            os.mkdir(path)
        return super().__new__(cls)

    def __setstate__(self, path):
        os.mkdir(path)


_OWN = f"c{__name__}\nMakesFolder\n".encode()

# name -> the pickle that makes the folder `path` when Python unpickles it.
TRAPS = {
    **{
        f"protocol {version}": lambda path, version=version: pickle.dumps(
            _Reduces(os.mkdir, path), version
        )
        for version in range(6)
    },
    "os.system": lambda path: pickle.dumps({"state_dict": _Reduces(os.system, f"mkdir {path}")}),
    "eval": lambda path: pickle.dumps(_Reduces(eval, f"__import__('os').mkdir({path!r})")),
    "exec": lambda path: pickle.dumps([_Reduces(exec, f"import os; os.mkdir({path!r})")]),
    "nested": lambda path: pickle.dumps(_Reduces(dict, [("a", _Reduces(os.mkdir, path))])),
    "in an OrderedDict": lambda path: pickle.dumps(
        collections.OrderedDict(a=_Reduces(os.mkdir, path)), 2
    ),
    "GLOBAL": lambda path: b"\x80\x02cos\nmkdir\n" + tuple_of(text(path)) + b"R.",
    "STACK_GLOBAL": lambda path: (
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + tuple_of(text(path)) + b"R."
    ),
    "STACK_GLOBAL out of the memo": lambda path: (
        b"\x80\x04\x8c\x02osq\x000\x8c\x05mkdirq\x010h\x00h\x01\x93" + tuple_of(text(path)) + b"R."
    ),
    "dotted STACK_GLOBAL": lambda path: (
        b"\x80\x04\x8c\x07os.path\x8c\x08os.mkdir\x93" + tuple_of(text(path)) + b"R."
    ),
    "an attribute of an allowed name": lambda path: (
        b"\x80\x04\x8c\x0bcollections\x8c\x10_sys.modules.get\x93\x8c\x02os\x85R"
        + b"0cos\nmkdir\n"
        + tuple_of(text(path))
        + b"R."
    ),
    "INST": lambda path: b"\x80\x02(" + text(path) + b"ios\nmkdir\n.",
    "OBJ": lambda path: b"\x80\x02(cos\nmkdir\n" + text(path) + b"o.",
    "NEWOBJ": lambda path: b"\x80\x02" + _OWN + tuple_of(text(path)) + b"\x81.",
    "NEWOBJ_EX": lambda path: b"\x80\x04" + _OWN + tuple_of(text(path)) + b"}\x92.",
    "BUILD": lambda path: b"\x80\x02" + _OWN + b")\x81" + text(path) + b"b.",
    "copyreg": lambda path: (
        b"\x80\x02ccopyreg\n_reconstructor\n"
        + tuple_of(_OWN, b"c__builtin__\nobject\n", b"N")
        + b"R"
        + text(path)
        + b"b."
    ),
    "functools.partial": lambda path: (
        b"\x80\x02cfunctools\npartial\n" + tuple_of(b"cos\nmkdir\n", text(path)) + b"R)R."
    ),
    "as a value of a dict": lambda path: (
        b"\x80\x02}" + text("x") + b"cos\nmkdir\n" + tuple_of(text(path)) + b"Rs."
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_refused_unsprung(trap, tmp_path):
    canary = tmp_path / "canary"
    data = TRAPS[trap](str(canary))
    assert "it would run code" in _refused(data) or trap == "protocol 0"
    assert not canary.exists()
    pickle.loads(data)
    assert canary.exists()


def test_the_message_names_what_would_have_run():
    assert "'posix.mkdir'" in _refused(pickle.dumps(_Reduces(os.mkdir, "x")))
    assert "the opcode INST" in _refused(b"\x80\x02(ios\nmkdir\n.")
    assert "'os.a\\x1b" in _refused(b"\x80\x02cos\na\x1b[31m\n.")
    assert "is damaged" in _refused(b"\x80\x02cos\n" + b"\xff" * 9 + b"\n.")
    assert len(_refused(b"\x80\x02cos\n" + b"a" * 100_000 + b"\n.")) < 400


def test_a_registered_extension_is_refused(tmp_path):
    canary = str(tmp_path / "canary")
    copyreg.add_extension("posix", "mkdir", 200)
    try:
        data = pickle.dumps(_Reduces(os.mkdir, canary), 2)
        assert b"\x82\xc8" in data
        assert "the opcode EXT1, which PyTorch" in _refused(data)
        assert not os.path.exists(canary)
        pickle.loads(data)
        assert os.path.exists(canary)
    finally:
        copyreg.remove_extension("posix", "mkdir", 200)


ODD = {
    "REDUCE of a storage type": (b"ctorch\nFloatStorage\n)R", "not callable"),
    "REDUCE of a string": (text("os.system") + b")R", "not callable"),
    "REDUCE with a number": (b"ccollections\nOrderedDict\nK\x01R", "is damaged"),
    "a storage as a class": (b"ctorch\nFloatStorage\n)\x81", "NEWOBJ"),
    "a name that only looks like one": (b"ctorch._utils\n_rebuild_tensor_v2.x\n", "it would run"),
    "a class of torch": (b"ctorch.nn.modules.linear\nLinear\n", "torch.nn.modules.linear.Linear"),
    "BUILD on a tensor": (tensor("FloatStorage", "0", 1, 0, (), ()) + b"}b", "BUILD"),
    "BUILD with slots": (b"}" + tuple_of(b"N", b"}") + b"b", "BUILD"),
    "a persistent id of text": (b"P0\n", "PERSID"),
    "a persistent id of another kind": (tuple_of(text("module"), text("x")) + b"Q", "no storage"),
    "a storage of no type": (
        tuple_of(text("storage"), b"N", text("0"), text("cpu"), number(1)) + b"Q",
        "wrong type",
    ),
    "a storage of negative size": (storage("FloatStorage", "0", -1), "two ways"),
    "a storage of two types": (
        storage("FloatStorage", "0", 1) + storage("HalfStorage", "0", 1),
        "two ways",
    ),
    "an unknown storage": (storage("QInt8Storage", "0", 1), "torch.QInt8Storage"),
    "a negative stride": (tensor("FloatStorage", "0", 9, 8, (9,), (-1,)), "shape or strides"),
    "a negative offset": (tensor("FloatStorage", "0", 9, -1, (1,), (1,)), "shape or strides"),
    "a negative shape": (tensor("FloatStorage", "0", 9, 0, (-1,), (1,)), "shape or strides"),
    "a shape of many axes": (tensor("FloatStorage", "0", 1, 0, (1,) * 9, (1,) * 9), "or strides"),
    "shape and strides differ": (tensor("FloatStorage", "0", 1, 0, (1,), ()), "or strides"),
    "a tuple as a key": (b"}" + tuple_of(number(1)) + b"Ns", "as the key"),
    "an unpaired item": (b"}(Nu", "is damaged"),
    "an OrderedDict with arguments": (
        b"ccollections\nOrderedDict\n]\x85R",
        "is damaged",
    ),
    "an empty stack": (b"0", "is damaged"),
    "a mark as a value": (b"(", "is damaged"),
    "a mark in a tuple": (b"(\x85", "is damaged"),
    "an unknown memo": (b"h\x07", "is damaged"),
    "text that is none": (b"X\x01\x00\x00\x00\xff", "is damaged"),
    "a length beyond the file": (b"X\xff\xff\xff\xff", "ends too early"),
    "an unknown opcode": (b"\xfe", "unknown opcode 0xfe"),
    "no end": (b"N" * 3, "unknown opcode 0x0a"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_torch_does_not_write_is_refused(what):
    opcodes, said = ODD[what]
    end = b"\n" if what == "no end" else b"."
    assert said in _refused(b"\x80\x02" + opcodes + end)


def test_every_opcode_with_nothing_before_it_is_refused_or_plain():
    for opcode in range(256):
        for rest in (b"", b".", b"\x00" * 20 + b".", b"\xff" * 20, b"a\nb\n."):
            try:
                value = _read(b"\x80\x02" + bytes([opcode]) + rest)
            except ModelFileError:
                continue
            assert type(value) in (PickledDict, list, tuple, str, int, float, bool, type(None))


def test_every_truncation_is_refused():
    whole = state_dict(a=tensor("FloatStorage", "0", 4, 0, (2, 2), (2, 1)))
    assert _read(whole)["a"].shape == (2, 2)
    for length in range(len(whole)):
        _refused(whole[:length])


def test_random_bytes_are_refused_or_plain():
    source = random.Random(0)
    whole = bytearray(state_dict(a=tensor("FloatStorage", "0", 4, 0, (2, 2), (2, 1))))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(source.randint(1, 6)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            _read(bytes(data))
        except ModelFileError as error:
            assert "\n" not in str(error)


SMALL = 2**16  # bytes of a pickle here: time and memory are in proportion


def _bombs() -> dict[str, bytes]:
    room = SMALL - 100
    doubled = b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(200)
    )
    return {
        "tuples of tuples, 2**200 leaves": b"\x80\x02)q\x000" + doubled + b"h\xc8.",
        "such a tuple as a key": b"\x80\x02})q\x000" + doubled + b"h\xc8Ns.",
        "a large index of the memo": b"\x80\x02Nr\xff\xff\xff\xff.",
        "a large frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.",
        "a long text": b"\x80\x02X\xff\xff\xff\xffa.",
        "deep lists": b"\x80\x02" + b"]" * (room // 2) + b"a" * (room // 2 - 1) + b".",
        "deep tuples": b"\x80\x02)" + b"\x85" * room + b".",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
        "many dicts": b"\x80\x02(" + b"}" * room + b"t.",
        "many marks": b"\x80\x02" + b"(" * room,
        "one list copied": b"\x80\x02]q\x00(" + b"N" * 9 + b"e" + b"h\x00" * (room // 3) + b".",
        "too long": b"\x80\x02(" + b"N" * (SMALL + 10) + b"t.",
    }


@pytest.mark.parametrize("bomb", _bombs())
def test_bombs_end_soon_in_little_memory(bomb, monkeypatch):
    monkeypatch.setattr("flaxbert.weights.pickle_reader.MAX_PICKLE_BYTES", SMALL)
    data = _bombs()[bomb]
    tracemalloc.start()
    start = time.perf_counter()
    said = ""
    try:
        _read(data)
    except ModelFileError as error:
        said = str(error)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(said) < 500
    assert ("longer than" in said) == (bomb == "too long")
    assert ("as the key" in said) == (bomb == "such a tuple as a key")
    # An open mark is a list and its method, 130 bytes; the growing stack leaves some more.
    assert used < 200 * SMALL + 2**16
    assert time.perf_counter() - start < 60
