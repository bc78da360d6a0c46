"""PyTorch's files, put together byte by byte: so that any byte of them can be a lie."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import Any

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + data


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def storage(kind: str, key: str, size: int, view: bytes = b"") -> bytes:
    parts = [text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(size)]
    return tuple_of(*parts, *([view] if view else [])) + b"Q"


def tensor(
    kind: str,
    key: str,
    size: int,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    view: bytes = b"",
) -> bytes:
    """Opcodes that leave one tensor on the stack, as `torch.save` writes them."""
    arguments = tuple_of(
        storage(kind, key, size, view),
        number(offset),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state_dict(**tensors: bytes) -> bytes:
    """A whole pickle: an OrderedDict with `_metadata`, as modules have it."""
    items = b"".join(text(name) + value for name, value in tensors.items())
    metadata = b"}" + text("_metadata") + b"}s"
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u" + metadata + b"b."


def zip_file(entries: dict[str, bytes], **options: Any) -> bytes:
    """A zip of these entries, in the folder archive/ unless a name starts with /."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, data in entries.items():
            archive.writestr(name[1:] if name.startswith("/") else f"archive/{name}", data)
    return buffer.getvalue()


def legacy_file(pickled: bytes, storages: dict[str, tuple[int, bytes]]) -> bytes:
    """A file of torch < 1.6; storages are key -> (number of elements, bytes)."""
    keys = pickle.dumps(list(storages), 2)
    data = b"".join(struct.pack("<q", size) + raw for size, raw in storages.values())
    return MAGIC + SYSTEM + pickled + keys + data
