"""AdamW, schedules, clipping and the decay mask against PyTorch and transformers.

Golden files hold PyTorch's side for every Python line; tests/golden/test_golden.py keeps them true.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import Mesh, Optim
from flaxbert.heads import abstract_params
from flaxbert.loop.mesh import AXES, make_mesh, moment_shardings
from flaxbert.optim import optimizer_for
from flaxbert.optim.schedules import make_schedule
from flaxbert.optim.shared.decay import is_decayed
from flaxbert.optim.shared.norms import norm_spread
from flaxbert.weights.table import entries, flatten
from tests.loop.cases import SCHEDULE_STEPS, SCHEDULES, UPDATES
from tests.loop.harness import BERT, examples, means, run, without_dropout
from tests.reference import NO_TORCH, digest, load_golden, params_for, random_arrays


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_transformers(name):
    ours = make_schedule(SCHEDULES[name], SCHEDULE_STEPS)
    theirs = load_golden("schedules")[name]
    assert len(theirs) == SCHEDULE_STEPS
    for step, rate in enumerate(theirs):
        # float32 keeps 7 digits of a rate near 3e-5.
        assert float(ours(step)) == pytest.approx(rate, rel=1e-5, abs=1e-11)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2)])
def test_the_norm_of_what_is_spread_is_one_message(sizes):
    mesh = make_mesh(Mesh(*sizes), BERT)
    shapes = abstract_params(BERT)
    shardings = moment_shardings(mesh, shapes)
    random = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda leaf, sharding: jax.device_put(
            random.normal(size=leaf.shape).astype(np.float32), sharding
        ),
        shapes,
        shardings,
    )
    norm = jax.jit(functools.partial(norm_spread, shardings)).lower(gradients, 3.0).compile()
    squares = [np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(gradients)]
    assert float(norm(gradients, 3.0)) == pytest.approx(np.sqrt(sum(squares)) / 3, rel=1e-6)
    # One for all that are spread over the same axes.
    specs = [str(sharding.spec) for sharding in jax.tree.leaves(shardings)]
    spread_over = {tuple(axis for axis in AXES if axis in spec) for spec in specs} - {()}
    assert norm.as_text().count(" all-reduce(") <= len(spread_over) < len(specs)
    assert "all-gather" not in norm.as_text()


def test_decay_is_chosen_by_name():
    decayed = {
        "/".join(part.key for part in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params(BERT))
        if is_decayed(path)
    }
    everything = set(flatten(abstract_params(BERT)))
    spared = {name for name in everything if name.endswith("bias") or "LayerNorm" in name}
    assert decayed == everything - spared
    assert decayed and spared


@pytest.fixture(scope="module")
def start():
    """The parameters before the first update, as PyTorch names them."""
    return random_arrays(without_dropout())


def their_updates(source: str, start, dtype: str):
    """Returns PyTorch's losses and its parameters after 20 updates (golden: float64 ones)."""
    config, data = without_dropout(), examples()
    if source == "live":
        pytest.importorskip("torch", reason=NO_TORCH + "the case [golden] of the same test")
        from tests.torch_reference import torch_run

        return torch_run(config, start, data, UPDATES, 16, dtype)
    golden = load_golden("updates")
    inputs = digest(start, data.tokens.input_ids, data.tokens.offsets, data.labels)
    assert str(golden["inputs"]) == inputs, "other inputs than updates.npz has"
    end = {n.removeprefix("end/"): a for n, a in golden.items() if n.startswith("end/")}
    return golden["losses" if dtype == "float64" else "float32_losses"], end


@functools.cache
def our_updates(dtype: str):
    config = without_dropout()
    params = params_for(config, random_arrays(config))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return run(examples(), config=config, params=params, dtype=dtype, optim=UPDATES)


@pytest.mark.xdist_group("20 updates")
@pytest.mark.parametrize("source", ["golden", "live"])
def test_20_updates_in_float64(source, start, x64):
    """Warm-up, clipping (active in every update) and decay: parameters to 1e-5 x peak rate."""
    losses, end = their_updates(source, start, "float64")
    history, state = our_updates("float64")
    assert min(update["gradient_norm"] for update in history) > UPDATES.clip_norm
    assert np.abs(means(history) / losses - 1).max() <= 1e-11
    ours = flatten(jax.device_get(state["params"]))
    for entry in entries(without_dropout()):
        array = ours[entry.path].T if entry.transposed else ours[entry.path]
        difference = np.abs(array - end[entry.name]).max()
        assert difference <= 1e-5 * UPDATES.learning_rate, (entry.name, difference)
        assert np.abs(array - start[entry.name]).max() > 0, f"{entry.name} never moved"


@pytest.mark.xdist_group("20 updates")
@pytest.mark.parametrize("source", ["golden", "live"])
def test_loss_curve_in_float32(source, start):
    losses, _ = their_updates(source, start, "float32")
    history, _ = our_updates("float32")
    assert np.abs(means(history) / losses - 1).max() <= 2e-5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 2e-3),
        ("schedule", "constant"),
        ("warmup", 0.5),
        ("weight_decay", 0.9),
        ("clip_norm", 0.0),
        ("b1", 0.5),
        ("b2", 0.9),
        ("eps", 1e-2),
    ],
)
def test_every_field_changes_the_update(field, value):
    base = Optim(learning_rate=1e-3, warmup=0.2, clip_norm=0.5)

    def updated(optim):
        params = {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.full((2,), 0.5)}
        optimizer = optimizer_for(optim, 10)
        state = optimizer.init(params)
        for step, size in enumerate([1.0, -0.2, 0.9, 0.1, -0.5, 0.05]):
            gradients = jax.tree.map(lambda p, size=size: p * size, params)
            norm = jnp.float32(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))))
            params, state = optimizer.apply(
                params,
                state,
                gradients,
                step=jnp.int32(step),
                norm=norm,
                normalizer=jnp.float32(1),
                finite=jnp.array(True),
            )
        return params["kernel"]

    changed = dataclasses.replace(base, **{field: value})
    assert np.abs(updated(base) - updated(changed)).max() > 1e-6
