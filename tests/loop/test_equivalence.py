"""One update is one update: packed or padded, whole or accumulated, on 1 device or 8.

In float64 the programs differ by the order of sums only: 1e-12 over 20 updates. In float32 the
design allows 1e-6 relative on the loss. Dropout is on unless a test says otherwise: its masks are a
function of the sequence, not of the layout.

Every layout is a program of its own, and compiling it takes seconds; the first test of a dtype pays
for the reference too.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from flaxbert.config import Mesh
from tests.loop.cases import UPDATES
from tests.loop.harness import examples, means, run, without_dropout

LAYOUTS = {
    "padded": {"packing": "pad"},
    "longer rows": {"row_length": 64},
    "accumulated in 3, padded": {"accumulate": 3, "packing": "pad"},
    "8 devices": {"mesh": Mesh(data=8, fsdp=1, model=1)},
    "2 x 2 x 2 devices": {"mesh": Mesh(data=2, fsdp=2, model=2)},
    "fsdp 4, accumulated": {"mesh": Mesh(data=1, fsdp=4, model=2), "accumulate": 2},
}
# Of the layouts that float64 proves, one of each kind.
IN_FLOAT32 = ("accumulated in 3, padded", "2 x 2 x 2 devices")


@pytest.fixture(scope="module")
def exact():
    """The packed, whole, one-device run in float64 that the layouts are compared with."""
    with jax.enable_x64(True):
        history, state = run(examples(), dtype="float64")
        return means(history), jax.device_get(state["params"])


@pytest.mark.xdist_group("updates in float64")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_float64(layout, exact, x64, capfd):
    losses, params = exact
    history, state = run(examples(), dtype="float64", **layout)
    # XLA warns when it has to replicate an array to reshard it; our program gives no reason to.
    assert "rematerialization" not in capfd.readouterr().err.lower()
    assert np.abs(means(history) / losses - 1).max() <= 1e-12
    differences = jax.tree.map(
        lambda ours, theirs: np.abs(np.asarray(ours) - theirs).max(), state["params"], params
    )
    # 20 updates of 1e-3: rounding of 1e-16 in a gradient, divided by its own size, stays far below.
    assert max(jax.tree.leaves(differences)) <= 1e-9


@pytest.fixture(scope="module")
def single():
    history, _ = run(examples())
    return means(history)


@pytest.mark.xdist_group("updates in float32")
@pytest.mark.parametrize("layout", IN_FLOAT32)
def test_float32(layout, single):
    history, _ = run(examples(), **LAYOUTS[layout])
    assert np.abs(means(history) / single - 1).max() <= 1e-6


@pytest.mark.xdist_group("20 updates")
def test_packed_equals_padded_without_dropout(x64):
    """Packed with the program that is compared with PyTorch's updates."""
    settings = {"config": without_dropout(), "dtype": "float64", "optim": UPDATES, "updates": 8}
    packed, _ = run(examples(), **settings)
    padded, _ = run(examples(), **settings, packing="pad")
    assert np.abs(means(packed) / means(padded) - 1).max() <= 1e-12


@pytest.mark.xdist_group("updates in float32")
def test_dropout_and_its_seed_matter():
    """The comparisons above would be empty if dropout did nothing."""
    with_dropout, _ = run(examples(), updates=3)
    without, _ = run(examples(), updates=3, config=without_dropout())
    other_seed, _ = run(examples(), updates=3, dropout_seed=8)
    assert np.abs(means(with_dropout) - means(without)).min() > 1e-4
    assert np.abs(means(with_dropout) - means(other_seed)).min() > 1e-4


@pytest.mark.xdist_group("updates in float32")
def test_same_run_same_bits():
    first, first_state = run(examples(), updates=5)
    second, second_state = run(examples(), updates=5)
    assert first == second
    same = jax.tree.map(
        lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), first_state, second_state
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["regression", "multi_label"])
def test_other_targets_accumulate_too(problem, x64):
    data = examples()
    random = np.random.default_rng(3)
    if problem == "regression":
        labels = random.normal(size=len(data)).astype(np.float32)
        names = ("LABEL_0",)
    else:
        labels = random.integers(0, 2, (len(data), 3)).astype(np.float32)
        names = ("a", "b", "c")
    data = type(data)(data.tokens, labels)
    config = type(without_dropout())(**{**vars(without_dropout()), "id2label": names})
    whole, _ = run(data, config=config, dtype="float64", problem=problem, updates=6)
    parts, _ = run(
        data, config=config, dtype="float64", problem=problem, updates=6, accumulate=2,
        packing="pad",
    )  # fmt: skip
    assert np.abs(means(whole) / means(parts) - 1).max() <= 1e-12


@pytest.mark.slow
def test_bfloat16_follows_float32():
    """bfloat16 has 8 bits: losses agree to about a per cent, parameters stay float32."""
    single, _ = run(examples(), config=without_dropout(), updates=10)
    half, state = run(examples(), config=without_dropout(), updates=10, dtype="bfloat16")
    assert np.abs(means(half) / means(single) - 1).max() < 0.05
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {np.dtype("float32")}
