"""SGD without momentum keeps nothing, and a checkpoint of nothing comes back."""

from __future__ import annotations

import jax.numpy as jnp

from flaxbert.config import make_config
from flaxbert.optim import optimizer_for
from flaxbert.storage.checkpoint import Checkpoints


def test_no_momentum_needs_no_memory(tmp_path):
    optim = make_config({"optim": {"name": "sgd", "sgd": {"momentum": 0.0}}}).optim
    params = {"kernel": jnp.ones((2, 3))}
    state = {"params": params, "optimizer": optimizer_for(optim, 10).init(params)}
    assert state["optimizer"] == {}
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, {"step": 1})
    checkpoints.wait()
    assert checkpoints.restore(1, state)["optimizer"] == {}
    checkpoints.close()
