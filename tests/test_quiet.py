"""What commands keep libraries from doing."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from flaxbert.quiet import leave_out, left_out
from tests.commands import start, train_flags


def test_a_command_imports_no_library_that_it_does_not_need(tiny_bert, reviews, tmp_path):
    """PyTorch alone would take a second or two of each start, wherever it is installed."""
    needed = importlib.util.find_spec("transformers"), importlib.util.find_spec("google.cloud")
    assert all(needed)
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", train__steps=1)
    process = start("train", *flags, env={"PYTHONPROFILEIMPORTTIME": "1"})
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-2000:]
    # Submodules: an import that fails is listed too.
    imported = {line.split("|")[-1].strip() for line in err.splitlines() if "|" in line}
    assert {"transformers.utils", "tensorboardX.writer", "jax.numpy"} <= imported
    assert not imported & {"torch.nn", "google.cloud.storage.client", "datasets.utils"}


def test_what_is_left_out_is_as_good_as_not_installed():
    name = "wave"  # of the standard library, and nothing here imports it
    sys.modules.pop(name, None)
    try:
        with left_out(name):
            assert importlib.util.find_spec(name) is None
            with pytest.raises(ImportError):
                importlib.import_module(name)
        assert importlib.import_module(name) is sys.modules[name]
        leave_out(name)  # imported already: stays
        with left_out(name):
            assert sys.modules[name] is not None
        assert sys.modules[name] is not None
    finally:
        sys.modules.pop(name, None)
