"""The commands of docs/own_data.md work as written, in a folder with train.csv and dev.csv."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

PAGE = ROOT / "docs" / "own_data.md"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_of_the_page(reviews, tmp_path):
    for name in ("train", "dev"):
        shutil.copy(reviews[name], tmp_path)
    commands = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(commands) == 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for command in commands:
        done = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, command + done.stderr
        workdir = tmp_path / re.findall(r"--workdir=(\S+)", command)[0]
        assert (workdir / "data_report.json").is_file()
        assert (workdir / "model" / "config.json").is_file()


def test_the_page_names_every_policy():
    from flaxbert.config import _CHOICES

    page = PAGE.read_text("utf-8")
    for field, choices in _CHOICES.items():
        if field.startswith("data.on_"):
            listed = ", ".join(f"`{choice}`" for choice in choices)
            assert f"| `{field}` | {listed} |" in page
