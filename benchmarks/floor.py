"""How close an update on a CPU comes to its floor: its matrix products and AdamW, timed alone.

    python benchmarks/floor.py [--workload=reviews] [--dtype=float32] [--rounds=7]

The floor is what an update cannot do without: the products of all linear layers, forward and
backward, at the sizes that were planned, and one pass of AdamW. Attention, norms, activations,
dropout and embeddings are not in it. Updates, products and AdamW take turns in one process. Adds to
results/floor.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from quickstart import cpu_name
from sides import ON_CPU
from speed import instructions, machine, prepare, workloads
from train_steps import Run, adamw

from flaxbert.model.bert_config import BertConfig

RESULT = Path(__file__).parent / "results" / "floor.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="reviews")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=10, help="of each round")
    arguments = parser.parse_args()
    workload = workloads()[arguments.workload]
    arguments.batch, arguments.platform = workload.batch, "cpu"
    arguments.repeats, arguments.warmup = arguments.rounds, 3
    with tempfile.TemporaryDirectory() as folder:
        prepare(workload, Path(folder))
        bert, _ = BertConfig.from_dict(json.loads(Path(folder, "model", "config.json").read_text()))
        run = Run(arguments, bert, dict(np.load(Path(folder, "tokens.npz"))))
    run.compile()
    run.timed(arguments.warmup)
    measured = {"what": workload.what, **of_run(run, arguments)}
    print(json.dumps(measured, indent=1))
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(record | {name_of(arguments): measured}, indent=1) + "\n")


def name_of(arguments: argparse.Namespace) -> str:
    return f"{arguments.workload} {arguments.dtype} {cpu_name()} ({instructions()})"


def of_run(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times updates, each product and AdamW by turns; seconds are medians over the rounds."""
    rows = round(statistics.mean(run.plan.row_counts))
    tokens, slots = rows * run.plan.row_length, rows * run.plan.slots
    counts = products_of(run.bert, tokens, slots)
    programs = {size: products(*size, arguments.dtype) for size in counts}
    seconds: dict[Any, list[float]] = collections.defaultdict(list)
    for _ in range(arguments.rounds):
        elapsed, done = run.timed(arguments.updates)
        # Per computed token: an update may be one row shorter or longer than the products here.
        seconds["update"].append(elapsed / done["computed_tokens"] * tokens)
        for size, program in programs.items():
            seconds[size].append(program())
        seconds["adamw"].append(adamw(run, count=3)["adamw_seconds"])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    linear = sum(count * median[size] for size, count in counts.items())
    flops = sum(6 * count * np.prod(size) for size, count in counts.items())
    floor = linear + median["adamw"]
    return {
        "command": f"python benchmarks/floor.py --workload={arguments.workload} "
        f"--dtype={arguments.dtype} --rounds={arguments.rounds}",
        "machine": machine(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        "tokens an update": tokens,
        "update_seconds": round(median["update"], 4),
        "spread": [round(value, 4) for value in (min(seconds["update"]), max(seconds["update"]))],
        "linear_seconds": round(linear, 4),
        "linear_gflops": round(flops / linear / 1e9, 1),
        "adamw_seconds": round(median["adamw"], 4),
        "floor_seconds": round(floor, 4),
        "floor / update": round(floor / median["update"], 3),
    }


def products_of(
    bert: BertConfig, tokens: int, slots: int
) -> collections.Counter[tuple[int, int, int]]:
    """Returns how many linear layers of each (tokens, inputs, outputs) an update has.

    Of the last layer only keys and values are computed at every token.
    """
    size, wide, layers = bert.hidden_size, bert.intermediate_size, bert.num_hidden_layers
    return collections.Counter(
        {
            (tokens, size, size): 4 * (layers - 1) + 2,
            (tokens, size, wide): layers - 1,
            (tokens, wide, size): layers - 1,
            (slots, size, size): 3,  # queries and output of the last layer, and the pooler
            (slots, size, wide): 1,
            (slots, wide, size): 1,
        }
    )


def products(tokens: int, inputs: int, outputs: int, dtype: str) -> Callable[[], float]:
    """Returns a function that times the three products of one linear layer."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((tokens, inputs), (inputs, outputs), (tokens, outputs))
    x, kernel, cotangent = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    @jax.jit
    def three(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        return product(x, kernel), product(cotangent, kernel.T), product(x.T, cotangent)

    def timed(count: int = 5) -> float:
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(three(x, kernel, cotangent))
        return (time.perf_counter() - start) / count

    timed()  # compiles
    return timed


if __name__ == "__main__":
    # As all sides of the other benchmarks compute.
    if os.environ.get("GLIBC_TUNABLES") != ON_CPU["GLIBC_TUNABLES"]:
        os.execve(sys.executable, sys.orig_argv, os.environ | ON_CPU)
    main()
