"""Evaluation is exact for every size 1..130, batch of 1..17 rows, and 1, 2, 4 and 8 devices."""

from __future__ import annotations

import pytest

from tests.loop import grid

# A minute of computing; beside other jobs the usual limit may not suffice.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("devices", grid.DEVICES)
def test_every_size_rows_and_devices(devices):
    assert grid.check(grid.SIZES, grid.ROWS, devices) == 130 * 17  # 8,840 with all devices
