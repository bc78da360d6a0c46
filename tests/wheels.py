"""The wheel of this checkout, built from a copy of it without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.commands import ROOT


def build_wheel(folder: Path) -> Path:
    """Builds the wheel into `folder`, by pip and the build backend of the test environment."""
    shutil.copytree(
        ROOT,
        folder / "clone",
        ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", "runs", ".*_cache", "build"),
    )
    options = ("--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", *options], cwd=folder / "clone", check=True
    )
    shutil.rmtree(folder / "clone")
    (found,) = folder.glob("*.whl")
    return found
