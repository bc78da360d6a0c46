"""Logits of every example, in the order of the data, however they were packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from flaxbert.loop.mesh import (
    batch_sharding,
    gather_tables,
    kernels_for,
    on_mesh,
    replicated,
)
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.heads import INPUTS, Params, bind

Batch = dict[str, Any]
Forward = Callable[[Params, Batch], jax.Array]


def make_forward(config: BertConfig, *, mesh: Mesh, dtype: str) -> Forward:
    """Returns `forward(params, batch) -> logits [R, S, C]`, jitted; the batch has [R, L or S]."""
    forward = forward_program(config, mesh=mesh, dtype=dtype)
    rows = batch_sharding(mesh, micro_batches=False)

    def run(params: Params, batch: Batch) -> jax.Array:
        arrays = on_mesh(mesh, {name: batch[name] for name in INPUTS}, micro_batches=False)
        return forward(params, jax.device_put(arrays, rows))

    return run


def forward_program(config: BertConfig, *, mesh: Mesh, dtype: str) -> Any:
    """Returns what `make_forward` runs: jitted, for a batch of `INPUTS` that lies on the mesh."""
    kernels = kernels_for(mesh, config, dtype)

    @jax.jit
    def forward(params: Params, batch: Batch) -> jax.Array:
        whole = gather_tables(mesh, params)
        model = bind(config, whole, dtype, kernels)
        logits = model(*(batch[name] for name in INPUTS))
        return jax.lax.with_sharding_constraint(logits, replicated(mesh))

    return forward


def predict_stream(
    forward: Forward, params: Params, batches: Iterable[Batch]
) -> Iterator[tuple[np.ndarray, Float[np.ndarray, "n C"]]]:
    """Yields (example ids, logits) of each batch, one batch behind the device."""
    pending: tuple[np.ndarray, jax.Array] | None = None
    for batch in batches:
        following = (batch["example_ids"], forward(params, batch))
        if pending is not None:
            yield _filled(*pending)
        pending = following
    if pending is not None:
        yield _filled(*pending)


def predict_logits(
    forward: Forward,
    params: Params,
    batches: Iterable[Batch],
    count: int,
    after_batch: Callable[[int], object] = lambda examples: None,
) -> Float[np.ndarray, "N C"]:
    """Returns the logits of examples 0..count-1; each is computed exactly once.

    `after_batch` is called with the number of examples of every batch, and may raise.

    Raises:
      RuntimeError: an example came twice or not at all (a defect, never a user's mistake).
    """
    logits: np.ndarray | None = None
    times_seen = np.zeros(count, np.int64)
    for ids, values in predict_stream(forward, params, batches):
        if logits is None:
            logits = np.zeros((count, values.shape[-1]), values.dtype)
        logits[ids] = values
        np.add.at(times_seen, ids, 1)
        after_batch(len(ids))
    if logits is None or not np.all(times_seen == 1):
        raise RuntimeError(f"{np.sum(times_seen != 1)} of {count} examples were not computed once")
    return logits


def _filled(ids: np.ndarray, logits: jax.Array) -> tuple[np.ndarray, Float[np.ndarray, "n C"]]:
    valid = ids >= 0
    return ids[valid], np.asarray(logits)[valid]
