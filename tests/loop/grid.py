"""Evaluation of every size, batch and number of devices, against one direct computation.

The forward pass is jitted and sharded like the model's, and reads what a model reads: embeddings of
ids, types and positions, added over the tokens of the sequence that starts at each of
cls_positions. All values are small integers, so that any layout gives the same float32 sums.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from flaxbert.config import Loss
from flaxbert.data.batches import Examples, inference_batches, plan_inference
from flaxbert.heads import head_named
from flaxbert.loop.evaluation import evaluate, scores
from flaxbert.loop.forward import predict_logits
from flaxbert.loop.mesh import AXES, batch_sharding, replicated
from flaxbert.model.bert_model import INPUTS
from tests.loop.harness import BERT, examples

SIZES, ROWS, DEVICES = range(1, 131), range(1, 18), (1, 2, 4, 8)

_LENGTH, _CLASSES = 24, 3


def tables() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = {"words": BERT.vocab_size, "types": BERT.type_vocab_size, "positions": _LENGTH}
    return {
        name: random.integers(-8, 9, (size, _CLASSES)).astype(np.float32)
        for name, size in sizes.items()
    }


def make_forward(devices: int):
    """Returns forward(params, batch) -> logits [R, S, C] on a mesh of so many devices."""
    grid = np.asarray(jax.devices()[:devices]).reshape(devices, 1, 1)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)
    rows = batch_sharding(mesh, micro_batches=False)

    @jax.jit
    def forward(params, batch):
        x = params["words"][batch["input_ids"]]
        x += params["types"][batch["token_type_ids"]] + params["positions"][batch["position_ids"]]
        sequences = batch["sequence_ids"]
        wanted = jnp.take_along_axis(sequences, batch["cls_positions"], axis=1)
        same = (wanted[:, :, None] == sequences[:, None, :]).astype(x.dtype)
        logits = jnp.einsum("RSL,RLC->RSC", same, x, precision="highest")
        return jax.lax.with_sharding_constraint(logits, replicated(mesh))

    params = jax.device_put(tables(), replicated(mesh))
    return lambda _, batch: forward(params, jax.device_put({n: batch[n] for n in INPUTS}, rows))


def direct(data: Examples) -> np.ndarray:
    """The logits of each example by itself, on the host."""
    table, tokens = tables(), data.tokens
    position = np.arange(len(tokens.input_ids)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    each = (
        table["words"][tokens.input_ids]
        + table["types"][tokens.token_type_ids]
        + table["positions"][position]
    )
    return np.add.reduceat(each, tokens.offsets[:-1])


def check(sizes, row_counts, devices: int, packing: str = "pack") -> int:
    """Checks every size with every number of rows; returns how many cases that were."""
    whole = examples(max(sizes), longest=_LENGTH)
    logits, forward, cases = direct(whole), make_forward(devices), 0
    head, names = head_named("single_label"), ("a", "b")
    for size in sizes:
        data = _first(whole, size)
        expected = scores(head, logits[:size], data, names, Loss())
        for rows in row_counts:
            plans = [
                # Rows of the sequences' own length: many batches and full rows.
                dataclasses.replace(plan, row_length=_LENGTH, slots=min(plan.slots, 4))
                for plan in plan_inference(
                    data.tokens.lengths, row_multiple=devices, rows=rows, packing=packing
                )
            ]
            batches = list(inference_batches(data, plans))
            ids = np.concatenate([b["example_ids"][b["example_ids"] >= 0] for b in batches])
            assert sorted(ids.tolist()) == list(range(size))
            counts = {batch["input_ids"].shape[0] for batch in batches}
            assert all(count % devices == 0 and count < rows + devices for count in counts)
            found = predict_logits(forward, {}, batches, size)
            np.testing.assert_array_equal(found, logits[:size])
            results = evaluate(forward, {}, batches, data, head=head, names=names, loss=Loss())
            assert results["samples"] == size
            assert {name: results[name] for name in expected} == expected
            cases += 1
    return cases


def _first(data: Examples, count: int) -> Examples:
    tokens, end = data.tokens, data.tokens.offsets[count]
    part = dataclasses.replace(
        tokens,
        input_ids=tokens.input_ids[:end],
        token_type_ids=tokens.token_type_ids[:end],
        offsets=tokens.offsets[: count + 1],
    )
    return Examples(part, data.labels[:count])
