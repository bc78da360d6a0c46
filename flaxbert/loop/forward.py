"""Logits of every sequence or token, in the order of the data, however they were packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from flaxbert.heads import Params, bind
from flaxbert.loop.mesh import (
    batch_sharding,
    gather_tables,
    kernels_for,
    on_mesh,
    replicated,
)
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.bert_model import INPUTS

Batch = dict[str, Any]
Forward = Callable[[Params, Batch], jax.Array]


def make_forward(config: BertConfig, *, mesh: Mesh, dtype: str) -> Forward:
    """Returns `forward(params, batch) -> logits [R, S or L, C]`, jitted; the batch has no A."""
    forward = forward_program(config, mesh=mesh, dtype=dtype)
    rows = batch_sharding(mesh, micro_batches=False)

    def run(params: Params, batch: Batch) -> jax.Array:
        arrays = on_mesh(mesh, {name: batch[name] for name in INPUTS}, micro_batches=False)
        return forward(params, jax.device_put(arrays, rows))

    return run


def forward_program(config: BertConfig, *, mesh: Mesh, dtype: str) -> Any:
    """Returns the jitted function of `make_forward`, for a batch of `INPUTS` on the mesh."""
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
) -> Iterator[tuple[Batch, jax.Array]]:
    """Yields each batch with its logits, one batch behind the device."""
    pending: tuple[Batch, jax.Array] | None = None
    for batch in batches:
        following = (batch, forward(params, batch))
        if pending is not None:
            yield pending
        pending = following
    if pending is not None:
        yield pending


def predict_logits(
    forward: Forward,
    params: Params,
    batches: Iterable[Batch],
    count: int,
    after_batch: Callable[[int], object] = lambda sequences: None,
) -> Float[np.ndarray, "N C"]:
    """Returns the logits of outputs 0..count-1; each is computed exactly once.

    Outputs are sequences or tokens, as the head's layout says; `after_batch` is called with the
    number of sequences of every batch, and may raise.

    Raises:
      RuntimeError: one was computed twice or not at all (a defect, never a user's mistake).

    """
    logits: np.ndarray | None = None
    times_seen = np.zeros(count, np.int64)
    for batch, computed in predict_stream(forward, params, batches):
        valid = batch["output_ids"] >= 0
        ids, values = batch["output_ids"][valid], np.asarray(computed)[valid]
        if logits is None:
            logits = np.zeros((count, values.shape[-1]), values.dtype)
        logits[ids] = values
        np.add.at(times_seen, ids, 1)
        after_batch(int(np.sum(batch["example_ids"] >= 0)))
    if logits is None or not np.all(times_seen == 1):
        raise RuntimeError(f"{np.sum(times_seen != 1)} of {count} outputs were not computed once")
    return logits
