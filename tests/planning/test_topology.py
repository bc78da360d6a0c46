"""The TPU's own compiler compiles a run for slices that are not here.

It is no part of the test environment (200 MB): pip install 'flaxbert[tpu]' adds it.
"""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.commands import ROOT, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra tpu"),
]


def planned(tiny_bert, reviews, tmp_path, topology, *flags):
    output = tmp_path / "plan.json"
    arguments = ["--config=configs/text.py", f"--config.model.path={tiny_bert}"]
    arguments += [f"--config.data.train={reviews['train']}", "--config.train.batch_size=64"]
    arguments += [f"--topology={topology}", f"--output={output}", *flags]
    process = start("plan", *arguments, cwd=ROOT)
    out, err = process.communicate(timeout=500)
    return json.loads(output.read_text()) if process.returncode == 0 else {}, out, err


@pytest.mark.parametrize(
    ("topology", "devices"), [("v4:2x2x1", 4), ("v5e:1x1", 1), ("v5p:2x2x1", 4), ("v6e:2x4", 8)]
)
def test_a_slice_of_each_chip(tiny_bert, reviews, tmp_path, topology, devices):
    found, out, err = planned(tiny_bert, reviews, tmp_path, topology)
    assert found, err
    assert err == ""  # the compiler's warnings of a host that is none
    update = found["update"]
    assert (found["devices"], found["mesh"]["data"]) == (devices, devices)
    assert found["dtype"] == "bfloat16"
    assert update["program"]["cycles"] > 0
    assert {"attention", "attention backward", "optimizer"} <= update["program"]["parts"].keys()
    assert 0 < update["program"]["memory"]["needed"] < update["program"]["memory"]["limit"]
    if devices > 1:
        (exchange,) = [e for e in update["program"]["exchanges"] if e["bytes"] > 2**20]
        assert (exchange["kind"], exchange["axes"]) == ("all-reduce", ["data"])
    assert 0 < found["mfu"] < 1 and found["seconds"] > 0
    assert "time by the TPU compiler's estimate" in out


def test_micro_batches_take_as_long(tiny_bert, reviews, tmp_path):
    taken = []
    for accumulate in (1, 4):
        fields = [f"--config.train.accumulate={accumulate}", "--config.data.row_length=128"]
        found, _, err = planned(tiny_bert, reviews, tmp_path, "v5e:1x1", *fields)
        assert found, err
        parts = found["update"]["program"]["parts"]
        taken.append(sum(cycles for part, cycles in parts.items() if "feed_forward" in part))
    assert 1 < taken[1] / taken[0] < 5  # counted once 0.8; so few rows fill no matrix unit


def test_parameters_spread_over_a_slice(tiny_bert, reviews, tmp_path):
    spread = ["--config.mesh.data=1", "--config.mesh.fsdp=4"]
    found, _, err = planned(tiny_bert, reviews, tmp_path, "v5e:2x2", *spread)
    assert found, err
    kinds = {(e["kind"], *e["axes"]) for e in found["update"]["program"]["exchanges"]}
    assert ("all-gather", "fsdp") in kinds


def test_slices_and_hosts(tiny_bert, reviews, tmp_path):
    found, out, err = planned(tiny_bert, reviews, tmp_path, "v5e:2x2", "--slices=2")
    assert found, err
    assert (found["devices"], found["hosts"], found["slices"]) == (8, 2, 2)
    assert "(2 x v5e:2x2)" in out
    program = found["update"]["program"]
    assert {tuple(exchange["axes"]) for exchange in program["exchanges"]} == {("data",)}
    assert sum(e["bytes"] for e in program["exchanges"]) >= program["memory"]["parameters"]


def test_a_shape_that_there_is_not(tiny_bert, reviews, tmp_path):
    found, _, err = planned(tiny_bert, reviews, tmp_path, "v5e:1x3")
    assert not found
    assert "--topology=v5e:1x3: the TPU's compiler refuses it" in err
