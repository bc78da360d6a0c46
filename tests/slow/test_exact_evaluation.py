"""Evaluation is exact for sizes up to 130, few and many rows, on one device and on eight.

Every size, number of rows and devices: tests/soak/evaluation.py.
"""

from __future__ import annotations

import pytest

from tests.loop import grid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# One, some, and those beside a whole number of rows or batches.
_SIZES = (1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 65, 127, 130)
# Fewer than the devices, as many, not a multiple of them, and more.
_ROWS = (1, 3, 8, 17)


@pytest.mark.parametrize("devices", [1, 8])
def test_sizes_on_devices(devices):
    assert grid.check(_SIZES, _ROWS, devices) == len(_SIZES) * len(_ROWS)
