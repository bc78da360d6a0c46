"""Runs a few updates of the real step on a tiny model, however packed, sharded or accumulated.

Compiling is most of what such a test costs: a step is made once for all runs that differ in their
values alone, so every run is planned, and has the schedule, of 20 updates or more.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from flaxbert.config import Loss, Mesh, Method, Optim
from flaxbert.data.batches import Examples, plan_training, train_batch
from flaxbert.data.tokenize import Tokens
from flaxbert.heads import abstract_params, head_named, init_params
from flaxbert.loop.mesh import make_mesh, on_mesh, row_multiple, state_shardings
from flaxbert.loop.step import abstract_state, init_state, make_train_step
from flaxbert.methods import method_for
from flaxbert.model.bert_config import BertConfig
from flaxbert.optim import optimizer_for
from flaxbert.run.one_run import share_of

BERT = BertConfig(
    vocab_size=64,
    hidden_size=32,  # smaller products are inlined by XLA:CPU and compile slower
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
    initializer_range=0.2,
    id2label=("a", "b", "c"),
)

ONE_DEVICE = Mesh(data=1, fsdp=1, model=1)
# Whatever may be laid out otherwise, at once: what the conformance suites compare with one device.
# tests/loop/test_equivalence.py has each alone.
ALL_AT_ONCE = {"packing": "pad", "accumulate": 2, "mesh": Mesh(data=2, fsdp=2, model=2)}
_OPTIM = Optim(learning_rate=1e-3, warmup=0.2)
_PLANNED = 20


def examples(
    count: int = 40, *, longest: int = 24, config: BertConfig = BERT, seed: int = 0
) -> Examples:
    """Random token sequences of random lengths with random labels."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest + 1, count)
    total = int(lengths.sum())
    labels = random.integers(0, config.num_labels, count).astype(np.int32)
    tokens = Tokens(
        random.integers(1, config.vocab_size, total).astype(np.int32),
        random.integers(0, config.type_vocab_size, total).astype(np.int32),
        np.cumsum([0, *lengths]),
        0,
        0.0,
    )
    return Examples(tokens, labels)


def run(
    data: Examples,
    *,
    updates: int = 20,
    config: BertConfig = BERT,
    params: Any = None,
    dtype: str = "float32",
    mesh: Mesh = ONE_DEVICE,
    packing: str = "pack",
    accumulate: int = 1,
    batch_size: int = 16,
    optim: Optim | None = None,
    method: Method | None = None,
    loss: Loss | None = None,
    problem: str = "single_label",
    dropout_seed: int = 7,
    row_length: int = 0,
    corrupt: Any = None,
) -> tuple[list[dict[str, float]], Any]:
    """Returns each update's sums (as floats, with "mean") and the final state.

    `corrupt(step, state, batch)` may return changed ones before an update.
    """
    on, planned = make_mesh(mesh, config), max(updates, _PLANNED)
    plan = plan_training(
        data,
        batch_size=batch_size,
        seed=1,
        steps=planned,
        packing=packing,
        accumulate=accumulate,
        row_multiple=row_multiple(on),
        row_length=row_length,
    )
    # One program instead of up to four.
    plan = dataclasses.replace(plan, row_counts=plan.row_counts[-1:])
    if params is None:
        params = _params(config, dtype)
    optim, method = optim or _OPTIM, method or Method()
    state = init_state(params, on, optimizer_for(optim, planned), method_for(method, config))
    step = _step(config, mesh, optim, method, loss or Loss(), planned, problem, dtype)
    history = []
    for number in range(updates):
        batch = train_batch(
            data, plan, batch_size=batch_size, seed=1, step=number, share=share_of(on)
        )
        if corrupt is not None:
            state, batch = corrupt(number, state, batch)
        arrays = on_mesh(on, batch, micro_batches=True)
        state, sums = step(state, arrays, {"dropout": np.uint32(dropout_seed)})
        values = {name: float(value) for name, value in jax.device_get(sums).items()}
        history.append({**values, "mean": values["loss"] / values["normalizer"]})
    return history, state


@functools.lru_cache(maxsize=8)
def _params(config: BertConfig, dtype: str) -> Any:
    return jax.device_get(init_params(config, 0, dtype))


@functools.lru_cache(maxsize=32)
def _step(
    config: BertConfig,
    mesh: Mesh,
    optim: Optim,
    method: Method,
    loss: Loss,
    planned: int,
    problem: str,
    dtype: str,
) -> Any:
    on, optimizer = make_mesh(mesh, config), optimizer_for(optim, planned)
    state = abstract_state(abstract_params(config), on, optimizer, method_for(method, config))
    return make_train_step(
        config,
        head_named(problem),
        mesh=on,
        shardings=state_shardings(on, state),
        optimizer=optimizer,
        loss=loss,
        dtype=dtype,
    )


def without_dropout(config: BertConfig = BERT) -> BertConfig:
    return dataclasses.replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def means(history: list[dict[str, float]]) -> np.ndarray:
    return np.array([update["mean"] for update in history])
