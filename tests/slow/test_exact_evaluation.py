"""Evaluation is exact for every size 1..130, few and many rows, and 1, 2, 4 and 8 devices.

Every number of rows too: tests/soak/evaluation.py.
"""

from __future__ import annotations

import pytest

from tests.loop import grid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Fewer than the devices, as many, not a multiple of them, and more.
_ROWS = (1, 3, 8, 17)


@pytest.mark.parametrize("devices", grid.DEVICES)
def test_every_size_on_devices(devices):
    assert grid.check(grid.SIZES, _ROWS, devices) == 130 * 4
