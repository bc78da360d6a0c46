"""docs/library.md: its programs run as they stand, and what they train learns.

They take more than 5 s because each compiles a whole update, as a user's would.
"""

from __future__ import annotations

import re
import shutil

import jax
import numpy as np
import pytest

from flaxbert import FlaxBertForSequenceClassification
from tests.commands import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
ON_A_MESH, PACKED = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tiny_bert, tmp_path, monkeypatch):
    """run(program) runs one in a folder with a checkpoint, and returns its names."""
    shutil.copytree(tiny_bert, tmp_path / "bert-folder")
    monkeypatch.chdir(tmp_path)

    def program(code):
        names = {}
        exec(compile(code, "docs/library.md", "exec"), names)
        return names

    return program


def _has_learnt(names):
    fresh = FlaxBertForSequenceClassification.from_pretrained("bert-folder", num_labels=2)
    loss, batch = names["loss_fn"], names["batch"]
    return loss(names["params"], batch, None) < 0.8 * loss(fresh.params, batch, None)


def test_a_loop_on_a_mesh(run):
    names = run(ON_A_MESH)
    assert _has_learnt(names)
    assert not names["batch"]["input_ids"].sharding.is_fully_replicated
    saved = FlaxBertForSequenceClassification.from_pretrained("trained")
    assert saved.config.id2label == ("negative", "positive")
    for ours, theirs in zip(*map(jax.tree.leaves, (names["params"], saved.params)), strict=True):
        assert len(ours.sharding.device_set) == jax.device_count() == 8
        np.testing.assert_array_equal(ours, theirs)


def test_a_loop_over_packed_rows(run):
    names = run(PACKED)
    assert _has_learnt(names)
    assert names["batch"]["weights"].sum() == 16 and len(names["batch"]["input_ids"]) < 16
