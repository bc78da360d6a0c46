"""Hostile names in every place that takes one; the full count is tests/soak/names.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.commands import ROOT
from tests.soak.names import PARTS


@pytest.mark.timeout(600)
def test_no_name_writes_outside_or_ends_in_a_traceback():
    """Each of 100 names is put into 2 of the places."""
    names, each = 100, 2
    command = [sys.executable, "-m", "tests.soak.names", f"--names={names}", f"--each={each}"]
    done = subprocess.run(
        [*command, "--seed=1"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["failed"] == 0 and found["left in the current folder"] == []
    assert sum(sum(c.values()) for c in found["counts"].values()) == names * each
    # The counts are not of one kind only: names are taken where they may be, and refused elsewhere.
    total = [sum(c.get(kind, 0) for c in found["counts"].values()) for kind in ("taken", "refused")]
    assert min(total) > names * each // 10 and len(PARTS) > 80
