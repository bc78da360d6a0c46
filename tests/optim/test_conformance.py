"""What every optimizer holds to; a file in flaxbert/optim is a case of each of these tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxbert.config import Mesh, Optim, make_config
from flaxbert.loop.mesh import make_mesh, moment_shardings
from flaxbert.loop.step import abstract_state, init_state
from flaxbert.methods import Method
from flaxbert.optim import optimizer_for
from flaxbert.optim.schedules import make_schedule
from flaxbert.optim.shared.norms import norm_together
from flaxbert.registry import declared, members
from flaxbert.storage.checkpoint import Checkpoints
from tests.loop.harness import BERT, ONE_DEVICE

# Those whose default options leave something out on arrays this small, or say nothing.
OPTIONS = {
    "adafactor": {"adafactor": {"min_dim_size_to_factor": 4}},
    "from_optax": {"from_optax": {"function": "nadam", "arguments": "b1=0.8"}},
}
UPDATES, NORMALIZER = 20, 3.0

SHAPES = {
    "bert": {
        "embeddings": {
            "word_embeddings": {"embedding": (12, 8)},
            "LayerNorm": {"scale": (8,), "bias": (8,)},
        },
        "encoder": {
            "layer": {"0": {"intermediate": {"dense": {"kernel": (8, 16), "bias": (16,)}}}}
        },
    },
    "classifier": {"kernel": (8, 3), "bias": (3,)},
}

every_optimizer = pytest.mark.parametrize("name", members("optim"))


def optim_of(name: str) -> Optim:
    values = {"learning_rate": 1e-2, "warmup": 3.0, "weight_decay": 0.1, "clip_norm": 0.5}
    return make_config({"optim": {"name": name, **values, **OPTIONS.get(name, {})}}).optim


def arrays(seed: int, dtype: str = "float32") -> Any:
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: random.normal(size=shape).astype(dtype),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


class Loop:
    """Updates of random gradients, on a mesh."""

    def __init__(self, optim: Optim, mesh: Mesh = ONE_DEVICE, dtype: str = "float32") -> None:
        self.optimizer, self.mesh, self.dtype = optimizer_for(optim, UPDATES), mesh, dtype
        self.mesh = make_mesh(mesh, BERT)
        self.state = init_state(arrays(0, dtype), self.mesh, self.optimizer, Method())
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        self.update = jax.jit(self._update, donate_argnums=0, out_shardings=self.shardings)

    def _update(self, state: Any, gradients: Any, finite: Any) -> Any:
        gradients = jax.lax.with_sharding_constraint(
            gradients, moment_shardings(self.mesh, gradients)
        )
        params, kept = self.optimizer.apply(
            state["params"],
            state["optimizer"],
            gradients,
            step=state["step"],
            norm=norm_together(gradients, jnp.asarray(NORMALIZER, self.dtype)),
            normalizer=jnp.asarray(NORMALIZER, self.dtype),
            finite=finite,
        )
        return {**state, "params": params, "optimizer": kept, "step": state["step"] + 1}

    def run(self, steps: range) -> Any:
        for step in steps:
            self.state = self.update(self.state, arrays(step + 1, self.dtype), np.True_)
        return self.state


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def differences(ours: Any, theirs: Any) -> float:
    found = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), ours, theirs)
    return max(jax.tree.leaves(found))


def optax_of(name: str, optim: Optim, schedule: Any) -> optax.GradientTransformation:
    """What a user of optax writes."""

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: str(path[-1].key) in ("kernel", "embedding"), params
        )

    options = dataclasses.asdict(optim).get(name, {})
    decay = optim.weight_decay
    with_rate = optax.add_decayed_weights(lambda step: -decay * schedule(step), mask)
    if name == "sgd":
        return optax.chain(optax.sgd(schedule, **options), with_rate)
    if name == "from_optax":
        return optax.chain(optax.nadam(schedule, b1=0.8), with_rate)
    if name == "adafactor":
        options |= {"weight_decay_rate": lambda step: decay * schedule(step)}
        return optax.adafactor(schedule, **options, weight_decay_mask=mask)
    if name == "adamw":
        options = {"b1": optim.b1, "b2": optim.b2, "eps": optim.eps}
    return getattr(optax, name)(schedule, **options, weight_decay=decay, mask=mask)


@every_optimizer
def test_20_updates_are_those_of_optax(name, x64):
    """Warm-up, decay by name and clipping, active in every update, included.

    In float64 both differ by the order of operations: 1e-12 of numbers near 1.
    """
    optim = optim_of(name)
    ours = Loop(optim, dtype="float64").run(range(UPDATES))["params"]
    schedule = make_schedule(optim, UPDATES)
    # optax counts in integers, which make a schedule's quotient float32.
    reference = optax_of(name, optim, lambda count: schedule(jnp.float64(count)))
    theirs = jax.tree.map(jnp.asarray, arrays(0, "float64"))
    state, update = reference.init(theirs), jax.jit(reference.update)
    for step in range(UPDATES):
        gradients = jax.tree.map(lambda g: g / NORMALIZER, arrays(step + 1, "float64"))
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradients)))
        assert norm > optim.clip_norm
        factor = optim.clip_norm / (norm + 1e-6)  # torch's clip_grad_norm_
        clipped = jax.tree.map(lambda g, factor=factor: jnp.asarray(g * factor), gradients)
        updates, state = update(clipped, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    assert differences(ours, arrays(0, "float64")) > 1e-3
    assert differences(ours, theirs) <= 1e-12


@every_optimizer
def test_an_update_that_is_not_finite_changes_nothing(name):
    loop = Loop(optim_of(name))
    loop.run(range(4))
    before = bits([loop.state["params"], loop.state["optimizer"]])
    gradients = arrays(9)
    gradients["classifier"]["kernel"][0, 0] = np.nan
    loop.state = loop.update(loop.state, gradients, np.False_)
    assert bits([loop.state["params"], loop.state["optimizer"]]) == before
    assert int(loop.state["step"]) == 5
    assert bits(loop.run(range(5, 6))["params"]) != before[: len(jax.tree.leaves(SHAPES))]


@every_optimizer
def test_a_resume_goes_on_to_the_same_bits(name, tmp_path):
    loop = Loop(optim_of(name))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(3, loop.run(range(3)), {"step": 3})
    checkpoints.wait()
    whole = bits(loop.run(range(3, 6)))
    abstract = abstract_state(arrays(0), loop.mesh, loop.optimizer, Method())
    loop.state = checkpoints.restore(3, abstract)
    assert bits(loop.run(range(3, 6))) == whole
    checkpoints.close()


@every_optimizer
def test_devices_share_the_work(name, x64):
    """What is kept of each parameter is spread like it; sums over devices differ by rounding."""
    single = Loop(optim_of(name), dtype="float64")
    spread = Loop(optim_of(name), Mesh(data=2, fsdp=2, model=2), dtype="float64")
    assert differences(spread.run(range(6)), single.run(range(6))) <= 1e-12
    kernel = ("intermediate", "dense", "kernel")
    for path, leaf in jax.tree_util.tree_leaves_with_path(spread.state["optimizer"]):
        names = tuple(part.key for part in path)
        if names[-3:] == kernel and leaf.shape == (8, 16):
            assert leaf.sharding.shard_shape(leaf.shape) == (2, 8)


@every_optimizer
def test_the_state_is_of_nested_dicts_with_string_keys(name):
    state = optimizer_for(optim_of(name), UPDATES).init(arrays(0))
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        assert all(isinstance(part, jax.tree_util.DictKey) for part in path)
        assert all(isinstance(part.key, str) for part in path)


@every_optimizer
def test_the_first_update_of_a_warm_up_has_rate_0(name):
    loop = Loop(optim_of(name))
    assert differences(loop.run(range(1))["params"], arrays(0)) == 0
    assert differences(loop.run(range(1, 2))["params"], arrays(0)) > 0


# Another value for each option, by its type or where its type does not say enough.
_OTHER = {
    "decay_rate": 0.4,
    "clipping_threshold": 0.1,
    "min_dim_size_to_factor": 100,
    "function": "adabelief",
    "arguments": "",
}


def _options() -> list[tuple[str, str]]:
    named = ((name, declared("optim", name).options) for name in members("optim"))
    return [(name, field) for name, options in named if options for field in vars(options)]


@pytest.mark.parametrize(("name", "field"), _options())
def test_every_option_changes_the_update(name, field):
    optim = optim_of(name)
    options = getattr(optim, name)
    if field == "nesterov":  # it is of the momentum
        options = dataclasses.replace(options, momentum=0.9)
    value = getattr(options, field)
    if field in _OTHER:
        other = _OTHER[field]
    else:
        other = not value if isinstance(value, bool) else value / 2 + 0.01
    before, after = (
        Loop(dataclasses.replace(optim, **{name: dataclasses.replace(options, **change)}))
        for change in ({}, {field: other})
    )
    ours, theirs = before.run(range(4)), after.run(range(4))
    assert differences(ours["params"], theirs["params"]) > 0
