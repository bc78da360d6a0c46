"""AdamW, schedules, clipping and the decay mask against PyTorch and transformers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import Optim
from flaxbert.loop.optim import (
    apply_gradients,
    init_optimizer,
    is_decayed,
    make_schedule,
    warmup_steps,
)
from flaxbert.model.heads import abstract_params
from flaxbert.weights.table import assemble, entries, flatten
from tests.loop.harness import BERT, examples, means, run, without_dropout
from tests.loop.torch_updates import tiny_torch, torch_run


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 7.0])
def test_schedules_are_those_of_transformers(schedule, warmup):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is for Python 3.11")
    from transformers import get_scheduler

    total = 50
    ours = make_schedule(Optim(learning_rate=3e-5, schedule=schedule, warmup=warmup), total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, warmup_steps(warmup, total), total)
    for step in range(total):
        # float32 keeps 7 digits of a rate near 3e-5.
        assert float(ours(step)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5, abs=1e-11)
        optimizer.step()
        theirs.step()


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


UPDATES = Optim(learning_rate=1e-3, warmup=0.2, clip_norm=0.5, weight_decay=0.1)


def test_20_updates_in_float64(x64):
    """Warm-up, clipping (active in every update) and decay: parameters to 1e-5 x peak rate."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is for Python 3.11")
    config, data = without_dropout(), examples()
    start, losses, end = torch_run(tiny_torch(config), data, UPDATES, 20, 16, torch.float64)
    params = assemble(config, start, "test").params
    history, state = run(
        data,
        config=config,
        params=jax.tree.map(lambda leaf: leaf.astype(np.float64), params),
        dtype="float64",
        optim=UPDATES,
    )
    assert min(update["gradient_norm"] for update in history) > UPDATES.clip_norm
    assert np.abs(means(history) / losses - 1).max() <= 1e-11
    ours = flatten(jax.device_get(state["params"]))
    for entry in entries(config):
        array = ours[entry.path].T if entry.transposed else ours[entry.path]
        difference = np.abs(array - end[entry.name]).max()
        assert difference <= 1e-5 * UPDATES.learning_rate, (entry.name, difference)
        assert np.abs(array - start[entry.name]).max() > 0, f"{entry.name} never moved"


def test_loss_curve_in_float32():
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is for Python 3.11")
    config, data = without_dropout(), examples()
    start, losses, _ = torch_run(tiny_torch(config), data, UPDATES, 20, 16, torch.float32)
    params = assemble(config, start, "test").params
    history, _ = run(data, config=config, params=params, optim=UPDATES)
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
        state, schedule = init_optimizer(params), make_schedule(optim, 10)
        for step, size in enumerate([1.0, -0.2, 0.9, 0.1, -0.5, 0.05]):
            gradients = jax.tree.map(lambda p, size=size: p * size, params)
            norm = jnp.float32(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))))
            rate = jnp.float32(schedule(step))
            params, state = apply_gradients(optim, rate, params, state, gradients, norm)
        return params["kernel"]

    changed = dataclasses.replace(base, **{field: value})
    assert np.abs(updated(base) - updated(changed)).max() > 1e-6
