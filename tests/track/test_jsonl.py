"""metrics.jsonl is cut back on a resume, whatever state a crash left it in."""

from __future__ import annotations

import json

import pytest

from flaxbert.storage.store import store_for
from flaxbert.track.jsonl import Jsonl, cut_back


def _line(step: int, split: str = "train") -> str:
    return json.dumps({"step": step, "split": split, "name": "loss", "value": 1.0}) + "\n"


@pytest.mark.parametrize("tail", ["", '{"step": 3, "na', "\n", "null\n", '{"name": "x"}\n'])
def test_lines_after_the_checkpoint_go(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1) + _line(2) + _line(3) + _line(4) + tail)
    cut_back(path, 2)
    assert path.read_text() == _line(1) + _line(2)


def test_an_evaluation_that_the_checkpoint_has_not_seen_runs_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(2) + _line(2, "validation") + _line(4) + _line(4, "validation"))
    cut_back(path, 4, evaluated=2)
    assert path.read_text() == _line(2) + _line(2, "validation") + _line(4)


def test_nothing_to_cut(tmp_path):
    cut_back(tmp_path / "metrics.jsonl", 5)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_values_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = Jsonl(path, store_for(path).spool(path))
    tracker.scalars(1, 0.5, "train", {"loss": float("nan"), "rate": 2.0})
    tracker.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["name"], line["value"]) for line in lines] == [("loss", None), ("rate", 2.0)]
