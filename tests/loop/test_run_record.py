"""run.json as a run writes it is taken; anything else names the field, and no traceback follows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from flaxbert.errors import ModelFileError
from flaxbert.loop.progress import Progress
from flaxbert.loop.run_record import check_recorded
from flaxbert.storage.workdir import to_json

BEST = {"step": 2, "value": 0.5, "weights": "ab", "results": {"loss": None}}


def _written(**changes):
    progress = Progress(step=4, wall_seconds=1.5, best=BEST, evaluated=4, results={"loss": 0.5})
    facts = {"training": {"": "ab"}, "validation": {}, "dtype": "float32", "model_revision": ""}
    return json.loads(to_json({**facts, **dataclasses.asdict(progress)})) | changes


def test_what_a_run_writes_is_taken():
    large = {**BEST, "value": 1e16}  # squared errors of prices
    for values in (_written(), _written(best=None, results=None), _written(best=large)):
        assert check_recorded(values, Path("run/4"), 4) is values
        assert Progress.from_dict(values).step == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", 10**30), ("step", -1), ("step", "4"), ("step", None), ("step", 4.0), ("step", 5),
        ("step", True), ("window", 5), ("window", {"evil": 1}), ("window", {"loss": "x"}),
        ("total", None), ("best", "x"), ("best", []), ("best", {}),
        ("best", {**BEST, "weights": 5}),
        ("best", {**BEST, "value": float("inf")}), ("results", "x"), ("wall_seconds", "x"),
        ("wall_seconds", 10**400), ("stopped_early", "no"), ("training", "x"), ("dtype", "object"),
        ("dtype", ["x"]), ("model_revision", 5), ("nonfinite_in_a_row", {}),
    ],
)  # fmt: skip
def test_another_value_is_refused_by_name(name, value):
    with pytest.raises(ModelFileError, match=rf"run/4: run.json is not .*: {name}") as caught:
        check_recorded(_written(**{name: value}), Path("run/4"), 4)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["step", "window", "total", "training", "validation"])
def test_a_missing_field_is_refused_by_name(name):
    values = _written()
    del values[name]
    with pytest.raises(ModelFileError, match=f"{name} is missing"):
        check_recorded(values, Path("run/4"), 4)


@pytest.mark.parametrize("values", [[], None, 5, "x"])
def test_no_object_is_refused(values):
    with pytest.raises(ModelFileError, match="is not an object"):
        check_recorded(values, Path("run/4"), 4)
