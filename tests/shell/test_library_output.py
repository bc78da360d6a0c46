"""What commands keep libraries from doing."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from flaxbert.shell.library_output import left_out
from tests.commands import ROOT, start, train_flags

# PyTorch, if it is installed: says that it was imported, in a version that transformers takes.
TORCH = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
__version__ = "2.99.0"
"""


@pytest.fixture
def torch(tmp_path):
    """A folder with a PyTorch that leaves a trace, also where the real one is not installed."""
    (tmp_path / "site" / "torch").mkdir(parents=True)
    (tmp_path / "site" / "torch" / "__init__.py").write_text(TORCH)
    info = tmp_path / "site" / "torch-2.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.99.0\n")
    return tmp_path / "site"


def _train(site, *flags) -> set[str]:
    """Runs the real command; returns what it imported. Imports that fail are listed too."""
    path = f"{ROOT}{os.pathsep}{site}"
    process = start("train", *flags, env={"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": path})
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-2000:]
    return {line.split("|")[-1].strip() for line in err.splitlines() if "|" in line}


def test_a_command_imports_no_library_that_it_does_not_need(torch, tiny_bert, reviews, tmp_path):
    """PyTorch alone would take a second or two of each start, wherever it is installed."""
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", train__steps=1)
    imported = _train(torch, *flags)
    assert {"transformers.utils", "tensorboardX.writer", "jax.numpy"} <= imported
    assert not imported & {"google.cloud.storage.client", "datasets.utils"}
    assert not (torch / "torch" / "imported").exists()


def test_what_is_left_out_is_as_good_as_not_installed():
    name = "wave"  # of the standard library, and nothing here imports it
    sys.modules.pop(name, None)
    try:
        with left_out(name):
            assert importlib.util.find_spec(name) is None
            with pytest.raises(ImportError):
                importlib.import_module(name)
        assert importlib.import_module(name) is sys.modules[name]
        with left_out(name):  # imported already: stays
            assert sys.modules[name] is not None
        assert sys.modules[name] is not None
    finally:
        sys.modules.pop(name, None)
