"""The golden files are what live PyTorch computes: they cannot go stale unseen (Python 3.11).

Not `embedded_updates`, which takes PyTorch two minutes: tests/slow/test_updates.py finds that
flaxbert computes what is in it, to 1e-5 of a rate.

Tolerances: float64 from another CPU or version of PyTorch differs by rounding (1e-13 of values near
1, ten times less than what ours may differ by). The sizes of float32 rounding errors are noise:
within a factor of four. After 20 updates Adam has turned rounding into a few 1e-9 of a rate.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.loop.cases import UPDATES
from tests.reference import GOLDEN, NO_TORCH, load_golden

pytest.importorskip("torch", reason=NO_TORCH + "the parity tests; this one checks golden files")

from tests.golden import make_torch


def check(name: str, live: np.ndarray, golden: np.ndarray, rate: float | None = None) -> None:
    """Compares one array of a golden file; `rate` is the peak learning rate that led to it."""
    assert live.shape == golden.shape and live.dtype == golden.dtype, name
    if live.dtype.kind == "U":
        assert live == golden, f"{name}: the inputs have changed; run tests.golden.make_torch"
    elif name.endswith("float32_errors"):
        assert (live <= 4 * golden + 1e-7).all() and (golden <= 4 * live + 1e-7).all(), name
    elif "float32" in name or name in make_torch.our_folders.PIPELINES:
        np.testing.assert_allclose(live, golden, rtol=2e-6, atol=1e-6, err_msg=name)
    elif name.startswith("end/"):
        assert rate is not None
        np.testing.assert_allclose(live, golden, rtol=0, atol=1e-6 * rate, err_msg=name)
    else:
        largest = max(1.0, np.abs(golden).max())
        np.testing.assert_allclose(live, golden, rtol=0, atol=1e-13 * largest, err_msg=name)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(function, marks=[pytest.mark.slow] * (function is make_torch.embedded))
        for function in make_torch.FILES
        if function is not make_torch.embedded_updates
    ],
    ids=lambda function: function.__name__,
)
def test_live_pytorch_computes_the_same(function, minilm):
    golden, live = load_golden(function.__name__), function()
    assert live.keys() == golden.keys()
    rate = UPDATES.learning_rate if function is make_torch.updates else None
    for name in golden:
        check(name, live[name], golden[name], rate)


def test_transformers_saves_the_same_folders(tmp_path):
    make_torch.write_folders(tmp_path)
    written = {p.relative_to(tmp_path): p for p in tmp_path.rglob("*") if p.is_file()}
    stored = {p.relative_to(GOLDEN / "folders"): p for p in (GOLDEN / "folders").rglob("*.*")}
    assert written.keys() == stored.keys()
    for name, path in written.items():
        if name.suffix == ".safetensors":
            assert path.read_bytes() == stored[name].read_bytes(), name
        elif name.name == "config.json":
            values, before = json.loads(path.read_text()), json.loads(stored[name].read_text())
            assert values | {"transformers_version": ""} == before | {"transformers_version": ""}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("plain/inputs", np.array("other")),
        ("plain/logits", None),
        ("plain/float32_errors", None),
        ("plain/gradients/classifier.bias", None),
    ],
)
def test_other_numbers_would_be_seen(name, wrong):
    golden = load_golden("grid")[name]
    check(name, golden, golden)
    if wrong is None:
        wrong = golden * 5 if name.endswith("errors") else golden + 1e-12
    with pytest.raises(AssertionError):
        check(name, wrong.astype(golden.dtype), golden)
