"""Hugging Face Flax, as transformers 4 had it, on one workload; for an environment of its own.

    python benchmarks/peers/flax4.py --data=tokens.npz --model=FOLDER

The step of its run_flax_glue.py: every batch padded to 128, jitted, optax AdamW with decay off
biases and norms, linear schedule, clipping at 1, dropout. One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from flax.training import train_state
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import (
    AutoConfig,
    FlaxAutoModelForSequenceClassification,  # pyright: ignore[reportAttributeAccessIssue]
)

LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mode", default="pad128-float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--random_weights", action="store_true")
    arguments = parser.parse_args()
    dtype = jnp.dtype(arguments.mode.split("-")[1])
    config = AutoConfig.from_pretrained(arguments.model, num_labels=2)
    # Random weights throughout: reading PyTorch's files would need PyTorch here, and speed is the
    # same.
    model = FlaxAutoModelForSequenceClassification.from_config(config, seed=0, dtype=dtype)
    total = arguments.updates + arguments.warmup
    state = train_state.TrainState.create(
        apply_fn=model.__call__, params=model.params, tx=optimizer_for(total)
    )

    def train_step(state, batch, key):
        def loss_of(params):
            logits = state.apply_fn(
                batch["input_ids"],
                batch["attention_mask"],
                params=params,
                dropout_rng=key,
                train=True,
            )[0]
            labels = jax.nn.one_hot(batch["labels"], 2)
            return optax.softmax_cross_entropy(logits, labels).mean()

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=gradients), loss

    step = jax.jit(train_step, donate_argnums=0)
    batches = make_batches(dict(np.load(arguments.data)), arguments.batch)
    key = jax.random.PRNGKey(0)
    samples = real = computed = 0
    for number in range(total):
        if number == arguments.warmup:
            jax.block_until_ready(state.params)
            start, samples, real, computed = time.perf_counter(), 0, 0, 0
        batch, tokens = next(batches)
        key, own = jax.random.split(key)
        state, loss = step(state, batch, own)
        samples += len(batch["labels"])
        real += tokens
        computed += batch["input_ids"].size
    jax.block_until_ready(state.params)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "samples_per_second": samples / seconds,
                "seconds_per_update": seconds / arguments.updates,
                "real_tokens_per_second": real / seconds,
                "real_per_computed_token": real / computed,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "last_loss": float(loss),
                "versions": {
                    "jax": jax.__version__,
                    "flax": flax.__version__,
                    "transformers": transformers.__version__,
                },
            }
        )
    )


def optimizer_for(total: int) -> optax.GradientTransformation:
    warm = max(1, total // 10)
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, 5e-5, warm), optax.linear_schedule(5e-5, 0.0, total - warm)],
        [warm],
    )

    def decayed(params):
        flat = flatten_dict(params)
        mask = {path: path[-1] != "bias" and "LayerNorm" not in path for path in flat}
        return unflatten_dict(mask)

    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01, mask=decayed)
    )


def make_batches(data, size: int):
    """Yields (arrays, real tokens) without end."""
    offsets, lengths = data["offsets"], np.diff(data["offsets"])
    seed = 0
    while True:
        order = np.random.default_rng(seed).permutation(len(lengths))
        seed += 1
        for i in range(0, len(order) - size + 1, size):
            chosen = order[i : i + size]
            ids = np.zeros((size, LENGTH), np.int32)
            mask = np.zeros((size, LENGTH), np.int32)
            for row, index in enumerate(chosen):
                length = lengths[index]
                ids[row, :length] = data["input_ids"][offsets[index] : offsets[index] + length]
                mask[row, :length] = 1
            arrays = {"input_ids": ids, "attention_mask": mask, "labels": data["labels"][chosen]}
            yield arrays, int(lengths[chosen].sum())


if __name__ == "__main__":
    main()
