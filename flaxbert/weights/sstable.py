"""The table of keys and values (LevelDB's format) that indexes a TensorFlow checkpoint.

Note: keys must ascend over the whole file, which also means that no block can be visited twice.
"""

from __future__ import annotations

from collections.abc import Iterator

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")

_FOOTER, _TRAILER = 48, 5  # bytes: footer of the file; compression and CRC behind a block
_MAX_KEY, _MAX_ENTRIES = 1024, 100_000  # together they bound memory


class TableError(ValueError):
    """The bytes are not a valid table; the message says why."""


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Returns every key and value of a whole file; TableError if it is damaged or compressed."""
    if len(data) < _FOOTER or not data.endswith(MAGIC):
        raise TableError("it does not end as an index of TensorFlow does")
    footer = data[-_FOOTER:]
    _, position = _handle(footer, 0)  # of the metadata block, which is unused
    index, _ = _handle(footer, position)
    table: dict[bytes, bytes] = {}
    last = None
    for _, place in _entries(_block(data, index)):
        handle, _ = _handle(place, 0)
        for key, value in _entries(_block(data, handle)):
            if last is not None and key <= last:
                raise TableError("its keys are not in order")
            if len(table) == _MAX_ENTRIES:
                raise TableError(f"it has more than {_MAX_ENTRIES} entries")
            table[key] = value
            last = key
    return table


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns an unsigned 64-bit number of 7 bits a byte, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise TableError("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, position
    raise TableError("a number is longer than 64 bits")


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Returns (offset, size) of a block, and the position behind them."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _block(data: bytes, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise TableError("a block lies outside of the file")
    if data[end] != 0:
        raise TableError("it is compressed, which TensorFlow does not do")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields keys and values; a key repeats the start of the one before it."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or end < 0:
        raise TableError("a block has more restarts than bytes")
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        own, position = read_varint(block, position)
        size, position = read_varint(block, position)
        if shared > len(key) or shared + own > _MAX_KEY or position + own + size > end:
            raise TableError("an entry is longer than its block")
        key = key[:shared] + block[position : position + own]
        position += own
        yield key, block[position : position + size]
        position += size
