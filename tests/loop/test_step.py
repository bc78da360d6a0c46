"""The step: what it returns, what a non-finite update leaves alone, what the compiler says."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import Loss, Method, Optim
from flaxbert.data.batches import empty_batch
from flaxbert.data.pack import RowPlan
from flaxbert.heads import abstract_params, head_named
from flaxbert.loop.mesh import make_mesh
from flaxbert.loop.step import _OPTIONS_FOR_TPUS as OPTIONS
from flaxbert.loop.step import abstract_state, compile_step, make_train_step
from flaxbert.methods import method_for
from flaxbert.optim import optimizer_for
from tests.loop.harness import BERT, ONE_DEVICE, examples, run


def _bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# These take the program of each other, and of test_equivalence.py.
in_one_worker = pytest.mark.xdist_group("updates in float32")


@in_one_worker
def test_first_update_has_rate_0_and_later_ones_move_every_parameter():
    _, before = run(examples(), updates=1)
    _, after = run(examples(), updates=6)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before["params"], after["params"])
    assert all(jax.tree.leaves(moved))


@in_one_worker
def test_state_has_string_keys_only():
    _, state = run(examples(), updates=1)
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        assert all(isinstance(part.key, str) for part in path)


@in_one_worker
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
@pytest.mark.parametrize("where", ["parameter", "weight"])
def test_a_nonfinite_update_changes_nothing(where):
    seen = {}

    def corrupt(step, state, batch):
        if step != 3:
            if step == 4:
                seen["after"] = _bits([state["params"], state["optimizer"]])
            return state, batch
        if where == "weight":
            seen["before"] = _bits([state["params"], state["optimizer"]])
            batch["weights"] = batch["weights"] * np.float32("inf")
            return state, batch
        # One NaN in the head: the loss is NaN, whatever the batch.
        classifier = state["params"]["classifier"]
        classifier = {**classifier, "bias": classifier["bias"].at[0].set(jnp.nan)}
        state = {**state, "params": {**state["params"], "classifier": classifier}}
        seen["before"] = _bits([state["params"], state["optimizer"]])
        return state, batch

    history, state = run(examples(), updates=5, corrupt=corrupt)
    assert seen["before"] == seen["after"]
    assert [bool(update["finite"]) for update in history[:4]] == [True, True, True, False]
    assert int(state["step"]) == 5
    assert int(state["optimizer"]["count"]) == (3 if where == "parameter" else 4)


@in_one_worker
def test_an_update_without_anything_to_learn_from_has_the_loss_0():
    def corrupt(step, state, batch):
        weights = batch["weights"] * np.float32(step != 3)
        return state, batch | {"weights": weights}

    history, state = run(examples(), updates=5, corrupt=corrupt)
    assert history[3]["mean"] == history[3]["loss"] == history[3]["gradient_norm"] == 0
    assert all(update["finite"] for update in history) and history[4]["loss"] > 0
    assert int(state["optimizer"]["count"]) == 5


def test_loss_options_reach_the_loss():
    """What they do there: tests/heads."""
    asked = []
    real = head_named("single_label").loss_sums

    def noted(*arrays, **options):
        asked.append(options)
        return real(*arrays, **options)

    mesh, optimizer = make_mesh(ONE_DEVICE, BERT), optimizer_for(Optim(), 20)
    step = make_train_step(
        BERT,
        SimpleNamespace(loss_sums=noted),  # type: ignore[arg-type]
        mesh=mesh,
        shardings=None,
        optimizer=optimizer,
        loss=Loss(label_smoothing=0.3, class_weights=(5.0, 1.0, 1.0)),
        dtype="float32",
    )
    state = abstract_state(abstract_params(BERT), mesh, optimizer, method_for(Method(), BERT))
    batch = empty_batch(examples(), RowPlan(row_length=32, row_counts=(4,), slots=4), 4)
    jax.eval_shape(step, state, batch, {"dropout": np.uint32(0)})
    assert asked
    for options in asked:
        assert options == {"label_smoothing": 0.3, "class_weights": (5.0, 1.0, 1.0)}


class Device:
    def __init__(self, platform):
        self.platform = platform


def on(platform, count):
    """An array on so many devices."""
    devices = {Device(platform) for _ in range(count)}
    return SimpleNamespace(sharding=SimpleNamespace(device_set=devices))


@pytest.mark.parametrize(
    ("platform", "devices", "known", "asked"),
    [
        ("tpu", 4, True, [OPTIONS]),
        ("tpu", 4, False, [OPTIONS, None]),
        ("tpu", 1, True, [None]),
        ("gpu", 4, True, [None]),
    ],
)
def test_tpus_are_told_how_to_exchange(platform, devices, known, asked):
    """By a compiler that knows the option; another one compiles without it."""
    found = []

    class Lowered:
        def lower(self, *arguments):
            return self

        def compile(self, options=None):
            found.append(options)
            if options and not known:
                raise RuntimeError("INVALID_ARGUMENT: No such compile option: 'xla_tpu_...'")
            return "program"

    assert compile_step(Lowered(), {"step": on(platform, devices)}, {}, {}) == "program"
    assert found == asked


def test_what_else_a_compiler_says_is_not_hidden():
    class Lowered:
        def lower(self, *arguments):
            return self

        def compile(self, options=None):
            raise RuntimeError("INTERNAL: something else")

    with pytest.raises(RuntimeError, match="something else"):
        compile_step(Lowered(), {"step": on("tpu", 4)}, {}, {})
