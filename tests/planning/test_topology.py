"""The TPU's own compiler compiles a run for slices that are not here."""

from __future__ import annotations

import json

import pytest

from tests.commands import ROOT, start
from tests.planning import golden

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not golden.is_there(), reason="needs the TPU's compiler: make test-slow fetches it"
    ),
]

# A further fusion or a copy of a layer is more than these.
TOLERANCES = {"cycles": 0.04, "flops": 0.01, "bytes_accessed": 0.04, "needed": 0.05}


def planned(tiny_bert, reviews, tmp_path, topology, *flags):
    output = tmp_path / "plan.json"
    arguments = ["--config=configs/text.py", f"--config.model.path={tiny_bert}"]
    arguments += [f"--config.data.train={reviews['train']}", "--config.train.batch_size=64"]
    arguments += [f"--output={output}", *flags]
    if topology:
        arguments.append(f"--topology={topology}")
    process = start("plan", *arguments, cwd=ROOT, env=golden.environment())
    out, err = process.communicate(timeout=500)
    return json.loads(output.read_text()) if process.returncode == 0 else {}, out, err


@pytest.mark.parametrize("case", ["v4:2x2x1", "v5e:2x2"])
def test_the_program_is_as_recorded(case):
    """After a change that is meant: python -m tests.planning.golden.

    Its other cases are of other chips and meshes, to be looked at then. The compiler takes half a
    minute each.
    """
    recorded = json.loads(golden.FILE.read_text())
    if recorded["compiler"] != golden.requirement():
        pytest.skip(f"recorded with {recorded['compiler']}")
    plan = golden.planned(case)
    found, right = golden.figures(plan), recorded["figures"][case]
    for name, tolerance in TOLERANCES.items():
        assert found[name] == pytest.approx(right[name], rel=tolerance), name
    assert found["exchanges"].keys() == right["exchanges"].keys()
    for name, (_, size) in right["exchanges"].items():
        assert found["exchanges"][name][1] == pytest.approx(size, rel=0.01), name

    program = plan["update"]["program"]
    chips, _ = golden.CASES[case]
    assert plan["devices"] == chips and plan["dtype"] == "bfloat16"
    assert {"attention", "attention backward", "optimizer"} <= program["parts"].keys()
    names = {counted["kernel"]["name"]: counted for counted in program["kernels"]}
    # All layers but the last, which is computed at first tokens only.
    assert names["attention_forward_dropout"]["calls"] == golden.LAYERS - 1
    assert names["attention_backward_dropout"]["calls"] == golden.LAYERS - 1
    is_counted = not case.startswith("v4")  # of which the compiler has no such model
    assert all(counted["by_formula"] is not is_counted for counted in names.values())
    assert 0 < plan["mfu"] < 1 and plan["seconds"] > 0
    assert (plan["exchange_seconds"] > 0) is (chips > 1)
    if case == "v5e:2x2":
        gradients_go_to_where_their_moments_are(found["exchanges"])


def gradients_go_to_where_their_moments_are(exchanges):
    """ZeRO-1: each byte of a gradient is sent once, each of a parameter gathered once."""
    sizes = {name: size for name, (_, size) in exchanges.items()}
    width, layer = 256, 4 * 256**2 + 2 * 256 * 1024
    table = 4 * 30522 * width  # float32
    parameters = table + 4 * (golden.LAYERS * layer + width**2 + 130 * width)
    assert sizes["all-gather over data"] == pytest.approx(parameters, rel=0.02)
    reduced = 4 * sizes["reduce-scatter over data"] + sizes["all-reduce over data"]
    # The table of words is not among them: tokens' gradients go to the parts instead.
    assert reduced == pytest.approx(parameters - table, rel=0.03)


def test_slices_and_hosts(tiny_bert, reviews, tmp_path):
    found, out, err = planned(tiny_bert, reviews, tmp_path, "v5e:2x2", "--slices=2")
    assert found, err
    assert (found["devices"], found["hosts"], found["slices"]) == (8, 2, 2)
    assert "(2 x v5e:2x2)" in out
    program = found["update"]["program"]
    assert {tuple(exchange["axes"]) for exchange in program["exchanges"]} == {("data",)}
    between = [exchange for exchange in program["exchanges"] if exchange["slices"] == 2]
    assert between and all(exchange["received"] > 0 for exchange in between)
    assert "between 2 slices" in out


def test_slices_and_meshes_are_compared(tiny_bert, reviews, tmp_path):
    found, out, err = planned(tiny_bert, reviews, tmp_path, "", "--compare=v5e:1x1,v6e:1x1")
    assert found, err
    assert [each["topology"] for each in found] == ["v5e:1x1", "v6e:1x1"]
    assert out.splitlines()[0].split() == [
        *("slice", "mesh", "memory", "left", "update", "exchanges"),
        *("sequences/s", "MFU", "run", "chip", "hours"),
    ]
    assert "recommended: v" in out


def test_a_shape_that_there_is_not(tiny_bert, reviews, tmp_path):
    found, _, err = planned(tiny_bert, reviews, tmp_path, "v5e:1x3")
    assert not found
    assert "--topology=v5e:1x3: the TPU's compiler refuses it" in err
