"""Optimizers of optax that have no file here: which are taken, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import make_config
from flaxbert.errors import ConfigError
from flaxbert.optim import optimizer_for

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def made(**options):
    optim = make_config({"optim": {"name": "from_optax", "from_optax": options}}).optim
    optimizer = optimizer_for(optim, 10)
    optimizer.init(PARAMS)
    return optimizer


@pytest.mark.parametrize("function", ["adabelief", "adamw", "adagrad", "lars", "novograd", "radam"])
def test_decay_is_decoupled_and_spares_biases_whatever_the_function_does(function):
    """With a gradient of zeros the decay is all that moves."""
    transformation = made(function=function).make(0.1)
    gradients = {"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    updates, _ = transformation.update(gradients, transformation.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1 * 0.01, atol=1e-7)
    assert not updates["dense"]["bias"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected an optimizer of optax that takes a learning rate, such as radam, got ''"),
        ({"function": "radamm"}, "got 'radamm'"),
        ({"function": "clip"}, "got 'clip'"),
        ({"function": "lbfgs"}, "got 'lbfgs'"),
        ({"function": "rprop"}, "got 'rprop'"),
        ({"function": "radam", "arguments": "b1='x'"}, "config.optim.from_optax: optax.radam: "),
        ({"function": "radam", "arguments": "b1=0.9), g("}, "expected 'name=value, ...'"),
        ({"function": "scale_by_learning_rate"}, "got 'scale_by_learning_rate'"),
        ({"function": "sm3"}, "two arrays called mu/dense/kernel"),
        ({"function": "radam", "arguments": "0.9"}, "expected 'name=value, ...', got '0.9'"),
        ({"function": "radam", "arguments": "b1="}, "expected 'name=value, ...', got 'b1='"),
        ({"function": "radam", "arguments": "b3=1"}, r"radam takes b1, b2, .* got 'b3'"),
        ({"function": "lion", "arguments": "weight_decay=1"}, "got 'weight_decay'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        made(**options)
