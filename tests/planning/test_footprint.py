"""A plan counts what the run's own programs take, on devices that are here.

Each kind of plan compiles an update and an evaluation: seconds.
"""

from __future__ import annotations

import json
import types

import jax
import numpy as np
import pytest

from flaxbert.loop import memory
from flaxbert.planning import footprint, picture, tpu_devices
from flaxbert.planning.chips import CHIPS
from flaxbert.planning.estimate import Exchange, Program, _group, _received, axes_of
from tests.commands import call, train_flags

pytestmark = pytest.mark.xdist_group("plans")  # one worker has the programs of all
_PLANS: dict[str, tuple] = {}


@pytest.fixture
def whole(planned):
    """whole(fields): a plan that several tests read, made once."""

    def once(**fields: object):
        key = repr(sorted(fields.items()))
        if key not in _PLANS:
            _PLANS[key] = planned(**fields)
        return _PLANS[key]

    return once


@pytest.fixture
def planned(tiny_bert, reviews, tmp_path, capsys):
    """planned(fields): the JSON of a plan, and what was printed."""

    def run(*flags: str, **fields: object):
        output = tmp_path / "plan.json"
        config = train_flags(
            tiny_bert,
            reviews["train"],
            tmp_path / "none",
            data__validation=reviews["test"],
            data__row_length=0,  # planned too
            **fields,
        )
        config.remove(f"--workdir={tmp_path / 'none'}")
        done = call("plan", *config, f"--output={output}", *flags, capsys=capsys)
        assert not (tmp_path / "none").exists()
        return json.loads(output.read_text()) if done.code == 0 else {}, done

    return run


def parameters_of(folder) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "numpy") as file:
        return sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118


def test_one_device(whole, tiny_bert):
    found, done = whole()
    assert done.code == 0, done.err
    update = found["update"]
    memory = update["program"]["memory"]
    assert found["devices"] == 1 and found["mesh"] == {"data": 1, "fsdp": 1, "model": 1}
    head = 2 * (32 + 1)  # which the folder has not
    assert memory["parameters"] == 4 * (parameters_of(tiny_bert) + head)
    assert memory["moments"] == 2 * memory["parameters"] + 4  # a counter
    held = memory["parameters"] + memory["moments"] + memory["temporaries"]
    assert held < memory["needed"] < 1.1 * held and memory["needed"] < memory["limit"]
    assert update["program"]["exchanges"] == []
    assert 0.5 < update["program"]["flops"] / update["flops_of_model"] < 1.2
    assert update["real_tokens"] <= update["computed_tokens"]
    assert found["evaluation"]["batches"] and found["evaluations"] == 1
    assert "gives no estimate" in done.out and (found["seconds"], found["mfu"]) == (0, None)


def test_micro_batches_compute_as_much(planned, whole):
    parts, done = planned(train__accumulate=4)
    assert done.code == 0, done.err
    flops = [
        plan["update"]["program"]["flops"] / plan["update"]["flops_of_model"]
        for plan in (whole()[0], parts)
    ]
    # Counted once they would be a quarter. Of a model this small the optimizer's, which are not in
    # the loop, are seen.
    assert 0.9 < flops[1] / flops[0] < 1.6
    assert "bytes accessed" not in done.out
    held = [plan["update"]["program"]["memory"]["temporaries"] for plan in (whole()[0], parts)]
    assert held[1] < held[0]


def test_what_does_not_fit_is_told(planned, monkeypatch):
    monkeypatch.setattr(memory, "limit_of", lambda device: 2**20)
    _, done = planned()
    assert done.code == 2 and "the device has too little memory" in done.err
    found, done = planned(train__accumulate=1)
    assert done.code == 0
    assert "does NOT fit" in done.out
    assert found["update"]["program"]["memory"]["limit"] == 2**20


def test_a_gradient_is_exchanged_once(whole):
    found, done = whole(mesh__data=8)
    assert done.code == 0, done.err
    memory = found["update"]["program"]["memory"]
    exchanges = found["update"]["program"]["exchanges"]
    assert all(exchange["axes"] == ["data"] for exchange in exchanges)
    sizes = {exchange["kind"]: exchange["bytes"] for exchange in exchanges}
    # The norm is one number: a scalar of each gradient kept gradients from being sent together.
    assert next(each["count"] for each in exchanges if each["kind"] == "all-reduce") <= 6
    # With the gradients two sums of the loss. A table's gradient may be computed by parts instead:
    # then tokens are exchanged.
    assert 0 < sizes.pop("all-reduce") <= memory["parameters"] + 64
    # Each device updates its part of the parameters, and gathers the others with some token ids.
    assert sizes.pop("all-gather") == pytest.approx(memory["parameters"], rel=0.01)
    assert sum(sizes.values()) < 0.01 * memory["parameters"]
    assert memory["moments"] < 0.3 * memory["parameters"]


def test_parameters_can_be_spread(planned, whole):
    spread, done = planned(mesh__data=2, mesh__fsdp=2, mesh__model=2)
    assert done.code == 0, done.err
    plans = whole(mesh__data=8)[0], spread
    held = [plan["update"]["program"]["memory"]["parameters"] for plan in plans]
    assert held[1] < 0.5 * held[0]
    axes = {tuple(found["axes"]) for found in spread["update"]["program"]["exchanges"]}
    assert ("model",) in axes and ("fsdp",) in axes


def test_axes_are_those_along_which_members_differ():
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "model"))
    assert axes_of(((0, 1, 2, 3),), mesh) == ("fsdp", "model")
    assert axes_of(((0, 4), (1, 5)), mesh) == ("data",)
    assert axes_of(((0, 0), (1, 2), (2, 1), (3, 3)), mesh) == ("fsdp", "model")
    assert axes_of((), mesh) == ("data", "fsdp", "model")
    assert axes_of(None, mesh) == ()


class Device:
    def __init__(self, slice_index):
        self.slice_index = slice_index


def test_who_exchanges_with_whom():
    """Two slices of four chips in the outermost axis."""
    devices = np.array([Device(number // 4) for number in range(8)]).reshape(4, 2, 1)
    names = ("data", "fsdp", "model")
    shape = dict(zip(names, devices.shape, strict=True))
    mesh = types.SimpleNamespace(devices=devices, axis_names=names, shape=shape)

    def group(groups, between_slices=""):
        found = types.SimpleNamespace(
            kind="all-reduce", groups=groups, between_slices=between_slices
        )
        return _group(found, mesh)  # pyright: ignore

    assert group(()) == ("all-reduce", ("data", "fsdp"), 8, 1)
    assert group(((0, 1), (6, 7))) == ("all-reduce", ("fsdp",), 2, 1)
    assert group(None) == ("all-reduce", (), 1, 1)
    assert group(None, "all-gather") == ("all-gather", ("data",), 2, 2)


def test_what_comes_from_others():
    assert _received("all-gather", 8, 800) == _received("all-to-all", 8, 800) == 700
    assert _received("all-reduce", 8, 800) == 1400
    assert _received("reduce-scatter", 8, 800) == 5600
    assert _received("collective-permute", 8, 800) == 800
    assert _received("all-reduce", 1, 800) == _received("collective-permute", 1, 800) == 0


def test_exchanges_go_at_the_pace_of_links_or_network():
    chip = CHIPS["v5e"]

    def seconds(by_links, by_network):
        exchanges = tuple(
            Exchange("all-gather", ("data",), 1, received, slices, received)
            for received, slices in ((by_links, 1), (by_network, 2))
        )
        program = Program(0, 0, 0, 0, {}, exchanges, 0, (), {}, None)  # pyright: ignore
        return program.exchange_seconds(chip, 2)

    assert seconds(9e9, 0) == pytest.approx(0.1)
    assert seconds(9e9, 3.125e9) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:2", "v5e:2x2x2", "v4:2x2", "v9:2x2", "v5e:2x", "2x2", "h100:1x1"]
)
def test_a_topology_that_is_none_is_refused(planned, name):
    _, done = planned(f"--topology={name}")
    assert done.code == 2
    assert "expected CHIP:SHAPE with one of v4, v5e, v5p, v6e" in done.err


def test_a_topology_needs_the_compiler(planned, monkeypatch):
    monkeypatch.setattr(tpu_devices.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    _, done = planned("--topology=v5e:2x2")
    assert done.code == 2
    assert "python -m pip install 'flaxbert[tpu]'" in done.err


def test_slices_need_a_topology(planned):
    _, done = planned("--slices=2")
    assert done.code == 2 and "--slices needs --topology" in done.err


@pytest.mark.slow
def test_the_largest_update_is_compiled(planned, monkeypatch):
    limit = 2**25
    monkeypatch.setattr(memory, "limit_of", lambda device: limit)
    about, done = planned()
    assert done.code == 0 and "by proportion about" in done.out
    found, done = planned("--largest")
    assert done.code == 0, done.err
    largest, update = found["update"]["largest"], found["update"]
    assert largest["rows"] >= about["update"]["largest"]["rows"] > update["rows"]
    assert 0.8 * limit < largest["memory"]["needed"] <= limit
    assert f"{largest['rows']:,} x {update['row_length']} tokens fit, " in done.out
    assert f"{largest['too_many']:,} x {update['row_length']} do not" in done.out
    assert largest["rows"] < largest["too_many"]
    # As many in a row as in the planned update.
    assert abs(largest["sequences"] / largest["rows"] - update["sequences"] / update["rows"]) < 0.1


@pytest.mark.slow
def test_the_largest_update_has_no_micro_batches(planned, monkeypatch):
    monkeypatch.setattr(memory, "limit_of", lambda device: 2**25)
    whole, _ = planned("--largest", train__batch_size=16)
    parts, done = planned("--largest", train__batch_size=16, train__accumulate=4)
    assert done.code == 0, done.err
    rows = [found["update"]["largest"]["rows"] for found in (whole, parts)]
    assert rows[1] == pytest.approx(rows[0], rel=0.2)
    _, done = planned(train__batch_size=16, train__accumulate=4)
    assert "--largest compiles more" in done.out


def test_a_device_that_does_not_say_what_it_has(planned, monkeypatch):
    monkeypatch.setattr(memory, "limit_of", lambda device: 0)
    found, done = planned("--largest")
    assert done.code == 0 and "largest at once: unknown" in done.out
    assert found["update"]["largest"] is None


def test_nothing_to_do_with_a_comparison(planned):
    for flag in ("--largest", "--picture=plan.png"):
        _, done = planned("--compare=v5e:1x1", flag)
        assert done.code == 2 and "is of one slice" in done.err


def test_a_picture_is_drawn(planned, tmp_path):
    _, done = planned(f"--picture={tmp_path / 'plan.svg'}")
    assert done.code == 0, done.err
    assert "parameters" in (tmp_path / "plan.svg").read_text()
    for name in ("plan.bmp", "plan"):
        _, done = planned(f"--picture={tmp_path / name}")
        assert done.code == 2 and "expected a name that ends in .png" in done.err


def test_a_picture_needs_matplotlib(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: None)
    _, done = planned(f"--picture={tmp_path / 'plan.png'}")
    assert done.code == 2 and "pip install 'flaxbert[picture]'" in done.err


def test_what_training_would_say_first_is_said(planned):
    _, done = planned(train__best_metric="acuracy")
    assert done.code == 2 and "Did you mean 'accuracy'?" in done.err
    _, done = planned(data__max_length=8, mesh__data=3, mesh__fsdp=7)
    assert done.code == 2 and "cut to 8" in done.err


def test_an_evaluation_that_the_compiler_refuses(planned, monkeypatch):
    class Refused:
        def lower(self, *arguments):
            return self

        def compile(self):
            raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")

    monkeypatch.setattr(footprint, "forward_program", lambda *arguments, **keywords: Refused())
    _, done = planned()
    assert done.code == 2 and "refuses an evaluation of" in done.err


def test_an_output_that_cannot_be_written_is_refused_first(planned, tmp_path):
    for output in (tmp_path, tmp_path / "none" / "plan.json"):
        _, done = planned(f"--output={output}")
        assert done.code == 2 and f"--output={output}: name a file" in done.err
        assert done.out == ""
