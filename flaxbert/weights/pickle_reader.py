"""Reads the pickles of PyTorch's state dicts without running anything that a pickle names.

This is Python's own unpickler, restricted to the opcodes that PyTorch writes. Names in a pickle are
looked up in a fixed table, all of whose functions are in this file; nothing is imported.

Note: it has to be the unpickler written in Python. The one in C allocates what a pickle of 9 bytes
asks for (4 GB, by an index of the memo), and hashes any key of a dict, such as endless tuples.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from flaxbert.errors import ModelFileError

# A pickle holds names and numbers, arrays are separate: BERT-large has 60 kB, with Adam's state 200
# kB. An opcode of one byte can make an object of about a hundred: this bounds memory too.
MAX_PICKLE_BYTES = 2**20

_MAX_AXES = 8


class StorageType(NamedTuple):
    """The element type of a storage, such as `torch.FloatStorage`."""

    dtype: str  # a NumPy or ml_dtypes name


class Storage(NamedTuple):
    """A persistent id: where a tensor's bytes are."""

    key: str
    dtype: str
    size: int  # elements
    view: tuple[str, int, int] | None = None  # legacy: key, offset and size inside of `key`


class TensorRecord(NamedTuple):
    """The description of a tensor, whose bytes are not read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class PickledDict(dict):
    """A dict or OrderedDict of a pickle; keys are strings and numbers."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if key is not None and type(key) not in (str, int, bool, float):
            raise ValueError(f"a {type(key).__name__} as the key of a dict")
        super().__setitem__(key, value)


def read_pickle(file: BinaryIO, source: str) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle and leaves the file behind its last byte.

    Returns the object, and every storage that it names, by key. Raises ModelFileError if the pickle
    is damaged, too long, or names anything but tensors in plain containers, which would run code.
    `source` is the file's name in messages.
    """
    start = file.tell()
    data = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    reader = _Reader(data)
    try:
        value = reader.load()
    except _RefusedError as error:
        raise ModelFileError(f"{source}: has {error}.") from error
    except EOFError as error:
        longer = data.tell() == MAX_PICKLE_BYTES
        said = f"longer than {MAX_PICKLE_BYTES} bytes, or " if longer else ""
        raise ModelFileError(f"{source}: is damaged: {said}the file ends too early.") from error
    except Exception as error:  # whatever the unpickler raises for bytes that are no pickle
        raise ModelFileError(
            f"{source}: is damaged at byte {start + data.tell()}: {type(error).__name__}: "
            f"{str(error)[:100]!r}."
        ) from error
    file.seek(start + data.tell())
    return value, reader.storages


class _RefusedError(Exception):
    pass


def _refusal(what: str) -> _RefusedError:
    return _RefusedError(
        f"{what}; refused: it would run code. If you trust it, load it where it was made and save "
        "the weights alone, as model.safetensors"
    )


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
    if type(tensor) is not TensorRecord:
        raise ValueError("a parameter that is no tensor")
    return tensor


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
_NAMES: dict[tuple[str, str], Callable[..., Any] | StorageType] = {
    ("collections", "OrderedDict"): lambda: PickledDict(),  # empty, filled by opcodes
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    **{("torch", name): StorageType(dtype) for name, dtype in _STORAGES.items()},
}

# All opcodes that PyTorch writes. Not among them: other ways to make objects by name (INST, OBJ,
# NEWOBJ, EXT), and the numbers and strings of protocols 0 and 1.
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP),
    *(pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BINPERSID),
)  # fmt: skip
_OPCODE_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}


class _Dispatch(dict[int, Any]):
    def __missing__(self, opcode: int) -> Any:
        name = _OPCODE_NAMES.get(chr(opcode))
        if name is None:
            raise ValueError(f"the unknown opcode {opcode:#04x}")
        raise _refusal(f"the opcode {name}, which PyTorch does not write")


_Unpickler: Any = pickle._Unpickler


class _Reader(_Unpickler):
    dispatch = _Dispatch({code[0]: _Unpickler.dispatch[code[0]] for code in _OPCODES})

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")  # of the str of Python 2
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise _refusal(f"the name {f'{module}.{name}'[:100]!r}")
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """("storage", type, key, location, elements) and, in old files, a view or None."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, size, *rest = pid
        if type(kind) is not StorageType or type(key) is not str or type(size) is not int:
            raise ValueError("a storage with a wrong type, key or size")
        view = rest[0] if rest else None
        if view is not None and [type(part) for part in view] != [str, int, int]:
            raise ValueError("a storage with a wrong view")
        storage = Storage(key, kind.dtype, size, view and tuple(view))
        known = self.storages.setdefault(key, storage)
        if (known.dtype, known.size) != (storage.dtype, storage.size) or size < 0:
            raise ValueError("a storage that is described in two ways")
        return storage

    def _empty_dict(self) -> None:
        self.append(PickledDict())

    def _build(self) -> None:
        """State dicts carry `_metadata` (versions of modules) as an attribute: not needed."""
        state = self.stack.pop()
        if type(self.stack[-1]) is not PickledDict or type(state) is not PickledDict:
            raise _refusal("the opcode BUILD on something other than a state dict")

    dispatch[pickle.EMPTY_DICT[0]] = _empty_dict
    dispatch[pickle.BUILD[0]] = _build
