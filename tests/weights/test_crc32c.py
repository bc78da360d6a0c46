"""CRC-32C against its definition, one bit at a time, and the published check values."""

from __future__ import annotations

import random

import pytest

from flaxbert.weights.crc32c import crc32c, masked_crc32c


def _bitwise(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_published_values(data, expected):
    assert crc32c(data) == expected


def test_every_length_and_the_joints_of_lanes():
    source = random.Random(0)
    for length in [*range(140), 191, 192, 193, 255, 256, 257, 1023, 1025, 8191, 70_001]:
        data = source.randbytes(length)
        assert crc32c(data) == _bitwise(data), length


def test_zeros_in_front_count():
    assert len({crc32c(bytes(n) + b"x") for n in range(50)}) == 50


def test_more_bytes_than_the_lanes_hold_at_first():
    """Above 1 MiB lanes grow longer instead of more."""
    data = random.Random(1).randbytes(2**20 + 12345)
    changed = bytearray(data)
    changed[777_777] ^= 4
    assert crc32c(bytes(changed)) != crc32c(data)
    # CRCs are linear: the sum of three equals that of the sum.
    other = random.Random(2).randbytes(len(data))
    third = bytes(a ^ b for a, b in zip(data, other, strict=True))
    assert crc32c(third) == crc32c(data) ^ crc32c(other) ^ crc32c(bytes(len(data)))


def test_masked_as_leveldb_does():
    crc = crc32c(b"foo")
    assert masked_crc32c(b"foo") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32
    assert masked_crc32c(b"foo") != crc
