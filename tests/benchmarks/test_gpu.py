"""The GPU's benchmark starts, on a CPU and tiny; what it measures needs the GPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks import BENCHMARKS, load
from tests.commands import ROOT

# Five processes that import JAX or PyTorch.
pytestmark = pytest.mark.slow

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


def test_it_starts_without_flaxbert_installed(tmp_path):
    code = f"""
import os, runpy, sys
package = os.path.join("flaxbert", "__init__.py")
sys.path[:] = [path for path in sys.path if not os.path.exists(os.path.join(path, package))]
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = ["gpu.py", "--help"]
runpy.run_path({str(BENCHMARKS / "gpu.py")!r}, run_name="__main__")
"""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--pytorch" in done.stdout


def test_the_command_in_the_record_names_what_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    gpu = load("gpu")
    asked = argparse.Namespace(
        sides="",
        rounds=2,
        ready_seconds=60.0,
        at_once=False,
        pytorch="",
        output=None,
        smoke=False,
    )
    plain = "python benchmarks/gpu.py --cases=base-32 --rounds=2"
    assert gpu.command_for("base-32", asked) == plain
    setup = gpu.setup_for(asked, tmp_path)
    assert setup.pytorch == sys.executable
    assert setup.environment["CUDA_VISIBLE_DEVICES"] == "2"
    assert setup.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    asked.pytorch, asked.sides = "/somewhere/python", "flaxbert"
    assert gpu.command_for("base-32", asked) == f"{plain} --sides=flaxbert --pytorch=..."
    assert gpu.setup_for(asked, tmp_path).pytorch == "/somewhere/python"


def test_the_gpu_is_kept_busy_until_its_clocks_are_read(monkeypatch, tmp_path):
    train_steps = load("train_steps")
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    busy = []

    def read(script: str) -> dict[str, str]:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        busy.clear()
        return train_steps.nvidia_smi("clocks.sm", "power.draw", meanwhile=lambda: busy.append(1))

    assert read("sleep 0.3; echo '1980 MHz, 650 W'") == {
        "clocks.sm": "1980 MHz",
        "power.draw": "650 W",
    }
    assert len(busy) > 1
    assert read("exit 0") == read("echo No devices") == read("echo a, b; exit 6") == {}
    monkeypatch.setenv("PATH", "")
    assert train_steps.nvidia_smi("clocks.sm", "power.draw") == {}


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


def test_a_turn_has_its_own_rates(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    figures = {
        "samples_per_second": 100.0,
        "repeats": [100.0, 80.0],
        "seconds_per_update": 0.32,
        "real_tokens_per_second": 1300.0,
        "attended_keys_per_second": 26000.0,
        "peak_mib": 7.0,
    }
    assert load("gpu").of_last_turn(figures) == {
        "samples_per_second": 80.0,
        "repeats": [80.0],
        "seconds_per_update": pytest.approx(0.4),
        "real_tokens_per_second": pytest.approx(1040.0),
        "attended_keys_per_second": pytest.approx(20800.0),
        "peak_mib": 7.0,
    }
