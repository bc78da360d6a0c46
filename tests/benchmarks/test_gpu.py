"""The GPU's benchmark starts, on a CPU and tiny; what it measures needs the GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks import BENCHMARKS
from tests.commands import ROOT

# Five processes that import JAX or PyTorch. On both lines: GPUs need the newer one.
pytestmark = [pytest.mark.slow, pytest.mark.both_lines]

ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | ON_CPU, capture_output=True, text=True, check=False
    )


def results() -> dict[str, float]:
    return {path.name: path.stat().st_mtime for path in (BENCHMARKS / "results").iterdir()}


def test_smoke_prints_every_side_and_writes_nothing():
    before = results()
    done = call("benchmarks/gpu.py", "--smoke")
    assert done.returncode == 0, done.stderr
    assert results() == before
    record = json.loads(done.stdout[done.stdout.index("\n{") :])
    ours = record["sides"]["flaxbert bfloat16"]
    assert ours["samples_per_second"] > 0 and 0 < ours["mfu"] < 1
    assert 0.5 < ours["real_per_computed_token"] <= 1
    assert record["shapes"] and record["device"]["adamw_ms"] > 0
    if not importlib.util.find_spec("torch"):
        assert record["failed"].keys() == {f"pytorch {mode}" for mode in record["modes"]}
        return
    assert "failed" not in record
    for mode in record["modes"]:
        side = record["sides"][f"pytorch {mode}"]
        assert side["samples_per_second"] > 0 and side["mfu"] > 0
        assert record["speed_ratios"][f"flaxbert bfloat16 / pytorch {mode}"]["median"] > 0
    assert record["sides"]["pytorch unpadded-bfloat16"]["real_per_computed_token"] == 1


def test_without_a_gpu_it_says_so():
    before = results()
    done = call("benchmarks/gpu.py", "--cases=base-32")
    assert done.returncode == 1
    assert "expected a GPU, JAX has cpu" in done.stderr
    assert "--smoke" in done.stderr and "Traceback" not in done.stderr
    assert results() == before


def test_our_side_needs_no_tokenizer_no_data_set_and_no_checkpoint():
    code = "import sys; sys.path.insert(0, 'benchmarks'); import train_steps; print(*sys.modules)"
    done = call("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert {"jax", "flax", "optax"} <= loaded
    assert not loaded & {
        "transformers",
        "tokenizers",
        "datasets",
        "orbax",
        "torch",
        "ml_collections",
        "tensorboardX",
        "safetensors",
    }
