"""What PyTorch pickles state dicts with, read by an interpreter that cannot run code.

It knows the opcodes that build dicts, lists, tuples, strings and numbers, and a fixed table of
functions, all of them from this file. The surprising thing: nothing is imported by name. A pickle
can only name an entry of the table; any other name ends the read.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from flaxbert.errors import ModelFileError

# A pickle holds names and numbers, the arrays stand beside it: BERT-large has 60 kB, with the state
# of Adam 200 kB. Opcodes of one byte can make objects of about a hundred: this bounds memory too.
MAX_PICKLE_BYTES = 2**20


_MAX_AXES = 8


@dataclasses.dataclass(frozen=True)
class StorageType:
    """`torch.FloatStorage` and its like: the element type of a storage."""

    dtype: str  # a NumPy or ml_dtypes name


@dataclasses.dataclass(frozen=True)
class Storage:
    """A persistent id: where a tensor's bytes are."""

    key: str
    dtype: str
    size: int  # elements
    view: tuple[str, int, int] | None = None  # legacy: key, offset and size inside of `key`


@dataclasses.dataclass(frozen=True)
class TensorRecord:
    """A tensor as described: not one byte of it is read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    pass


_MARK = _Mark()
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def _ordered_dict(*arguments: Any) -> dict:
    """collections.OrderedDict(), filled by opcodes. Copying an argument could be made to go on."""
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if (
        type(storage) is not Storage
        or type(shape) is not tuple
        or type(strides) is not tuple
        or len(shape) != len(strides)
        or len(shape) > _MAX_AXES
        or not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *shape, *strides))
    ):
        raise ValueError("a tensor with a wrong storage, offset, shape or strides")
    return TensorRecord(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> TensorRecord:
    """torch._utils._rebuild_parameter and _rebuild_parameter_with_state."""
    if not isinstance(tensor, TensorRecord):
        raise ValueError("a parameter that is no tensor")
    return tensor


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any] | StorageType] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    **{("torch", name): StorageType(dtype) for name, dtype in _STORAGES.items()},
}


def read_pickle(file: BinaryIO, source: str) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle and leaves the file behind its last byte.

    Returns the object, and every storage that it names, by key.

    Args:
      file: a binary file that can be read and sought.
      source: its name, for messages.

    Raises:
      ModelFileError: the pickle is damaged, too long, or names anything but tensors in plain
        containers; in the latter case it was about to run code.
    """
    start = file.tell()
    reader = _Reader(file.read(MAX_PICKLE_BYTES), source)
    try:
        value = reader.run()
    except ModelFileError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise ModelFileError(
            f"{source}: is damaged at byte {start + reader.position}: {type(error).__name__}: "
            f"{str(error)[:100]!r}."
        ) from error
    file.seek(start + reader.position)
    return value, reader.storages


def _key(value: Any) -> Any:
    """Only keys whose hash is cheap: that of nested tuples can take for ever."""
    if value is not None and type(value) not in (str, int, bool, float):
        raise ValueError(f"a {type(value).__name__} as the key of a dict")
    return value


class _Reader:
    """The stack machine: one method or lambda per opcode."""

    def __init__(self, data: bytes, source: str) -> None:
        self.position = 0
        self.storages: dict[str, Storage] = {}
        self._data = data
        self._source = source
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            opcode = self._take(1)[0]
            if opcode == ord("."):  # STOP
                return self._pop()
            act = _OPCODES.get(opcode)
            if act is None:
                name = _RUNNING.get(opcode)
                what = f"the opcode {name}" if name else f"the unknown opcode {opcode:#04x}"
                self._refuse(what, runs=name is not None)
            else:
                act(self)

    def _refuse(self, what: str, *, runs: bool) -> NoReturn:
        why = (
            "refused: it would run code. If you trust it, load it where it was made and save the "
            "weights alone, as model.safetensors"
            if runs
            else "refused: PyTorch writes no such pickle"
        )
        raise ModelFileError(f"{self._source}: has {what} at byte {self.position}; {why}.")

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            longer = f"longer than {MAX_PICKLE_BYTES} bytes, or "
            raise ValueError(
                f"{longer if len(self._data) == MAX_PICKLE_BYTES else ''}the file ends too early"
            )
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = self._data.index(b"\n", self.position)
        return self._take(end + 1 - self.position)[:-1].decode()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("an unexpected mark")
        return value

    def _items(self) -> list[Any]:
        """Takes what lies above the last mark."""
        items: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def text(self, layout: str) -> None:
        self._push(self._take(self._number(layout)).decode())

    def number(self, layout: str) -> None:
        self._push(self._number(layout))

    def long(self) -> None:
        size = self._number("<B")
        if size > 16:  # the magic number of old files has 10 bytes
            raise ValueError(f"an integer of {size} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def take_tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def marked_tuple(self) -> None:
        self._push(tuple(self._items()))

    def get(self, layout: str) -> None:
        self._push(self._memo[self._number(layout)])

    def put(self, layout: str) -> None:
        self._memo[self._number(layout)] = self._top(object)

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._top(object)

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if top is _MARK or not isinstance(top, kind):
            raise ValueError(f"expected a {kind.__name__}, got a {type(top).__name__}")
        return top

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self) -> None:
        values = self._items()
        self._top(list).extend(values)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[_key(key)] = value

    def set_items(self) -> None:
        items = self._items()
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def build(self) -> None:
        """State dicts carry `_metadata` (versions of modules) as an attribute: not needed."""
        state = self._pop()
        if type(self._top(object)) is not dict or type(state) is not dict:
            self._refuse("the opcode BUILD on something other than a state dict", runs=True)

    def name(self, module: Any, name: Any) -> None:
        found = _FUNCTIONS.get((module, name)) if type(module) is type(name) is str else None
        if found is None:
            self._refuse(f"the name {f'{module}.{name}'[:100]!r}", runs=True)
        self._push(found)

    def global_name(self) -> None:
        module = self._line()
        self.name(module, self._line())

    def stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self.name(module, name)

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple or function not in _CALLABLE:
            self._refuse("the opcode REDUCE on no known function", runs=True)
        self._push(function(*arguments))

    def persistent(self) -> None:
        """("storage", type, key, location, elements) and, in old files, a view or None."""
        identity = self._pop()
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, size, *rest = identity
        if not isinstance(kind, StorageType) or type(key) is not str or type(size) is not int:
            raise ValueError("a storage with a wrong type, key or size")
        view = rest[0] if rest else None
        if view is not None:
            if [type(part) for part in view] != [str, int, int]:
                raise ValueError("a storage with a wrong view")
            view = tuple(view)
        storage = Storage(key, kind.dtype, size, view)
        known = self.storages.setdefault(key, storage)
        if (known.dtype, known.size) != (storage.dtype, storage.size) or size < 0:
            raise ValueError("a storage that is described in two ways")
        self._push(storage)


_CALLABLE = [entry for entry in _FUNCTIONS.values() if not isinstance(entry, StorageType)]

_OPCODES: dict[int, Callable[[_Reader], Any]] = {
    0x80: lambda r: r._number("<B"),  # PROTO
    0x95: lambda r: r._number("<Q"),  # FRAME
    ord("("): lambda r: r._push(_MARK),
    ord("0"): lambda r: r._pop(),  # POP
    ord("}"): lambda r: r._push({}),
    ord("]"): lambda r: r._push([]),
    ord(")"): lambda r: r._push(()),
    ord("N"): lambda r: r._push(None),
    0x88: lambda r: r._push(True),
    0x89: lambda r: r._push(False),
    ord("J"): lambda r: r.number("<i"),  # BININT
    ord("K"): lambda r: r.number("<B"),  # BININT1
    ord("M"): lambda r: r.number("<H"),  # BININT2
    ord("G"): lambda r: r.number(">d"),  # BINFLOAT
    0x8A: _Reader.long,  # LONG1
    ord("X"): lambda r: r.text("<I"),  # BINUNICODE
    0x8C: lambda r: r.text("<B"),  # SHORT_BINUNICODE
    ord("T"): lambda r: r.text("<I"),  # BINSTRING: the str of Python 2
    ord("U"): lambda r: r.text("<B"),  # SHORT_BINSTRING
    0x85: lambda r: r.take_tuple(1),
    0x86: lambda r: r.take_tuple(2),
    0x87: lambda r: r.take_tuple(3),
    ord("t"): _Reader.marked_tuple,
    ord("h"): lambda r: r.get("<B"),  # BINGET
    ord("j"): lambda r: r.get("<I"),  # LONG_BINGET
    ord("q"): lambda r: r.put("<B"),  # BINPUT
    ord("r"): lambda r: r.put("<I"),  # LONG_BINPUT
    0x94: _Reader.memoize,
    ord("a"): _Reader.append,
    ord("e"): _Reader.appends,
    ord("s"): _Reader.set_item,
    ord("u"): _Reader.set_items,
    ord("b"): _Reader.build,
    ord("c"): _Reader.global_name,
    0x93: _Reader.stack_name,
    ord("R"): _Reader.reduce,
    ord("Q"): _Reader.persistent,
}

# Opcodes that make objects by name; the rest of the unlisted ones belong to formats that PyTorch
# does not write.
_RUNNING = {
    ord("i"): "INST",
    ord("o"): "OBJ",
    0x81: "NEWOBJ",
    0x92: "NEWOBJ_EX",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    ord("P"): "PERSID",
}
