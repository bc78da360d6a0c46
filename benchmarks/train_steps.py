"""flaxbert's updates on one device, without a run's files: the real step, packer and queue.

    python benchmarks/train_steps.py --data=tokens.npz --model=FOLDER [--platform=gpu]
    python benchmarks/train_steps.py --describe        # what device JAX has here

What train.py does between two updates is done here too: planned shapes, packing on the host, one
update waiting at the device. Before the timed updates the device shows what it can do at best:
dense bfloat16 products, and AdamW alone. One JSON object on standard output, or one a turn. Needs
JAX, Flax, Optax, NumPy and jaxtyping only, and a folder with config.json: weights are random.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import Loss, Mesh, Optim
from flaxbert.data.batches import Examples, count_batch, empty_batch, plan_training, train_batch
from flaxbert.data.tokenize import Tokens
from flaxbert.heads import head_named, init_params
from flaxbert.loop.in_flight import InFlight
from flaxbert.loop.memory import MIB, needed_by
from flaxbert.loop.mesh import make_mesh, state_shardings
from flaxbert.loop.step import compile_step, init_state, make_train_step
from flaxbert.methods import Method
from flaxbert.model.bert_config import BertConfig
from flaxbert.optim import optimizer_for
from flaxbert.run.row_costs import work_for

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
ADAMW_BYTES = 28  # read: parameter, gradient, two moments; written: all but the gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--platform", default="gpu", help="refuses any other")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--updates", type=int, default=100, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--turns", action="store_true", help="each repeat waits for a line")
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--size", type=int, default=8192, help="of the dense products")
    parser.add_argument("--describe", action="store_true")
    arguments = parser.parse_args()
    if arguments.describe:
        print(json.dumps(description()))
        return
    device = jax.devices()[0]
    if device.platform != arguments.platform:
        raise SystemExit(f"expected a {arguments.platform}, JAX has {device.device_kind}")
    figures = {}
    for figures in measured(arguments):
        if arguments.turns:
            print(json.dumps(figures), flush=True)
    if not arguments.turns:
        print(json.dumps(figures))


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiles, warms up, sees what the device can do at best; yields the figures of each repeat.

    They are those of all repeats so far.
    """
    bert, _ = BertConfig.from_dict(json.loads(Path(arguments.model, "config.json").read_text()))
    run = Run(arguments, bert, dict(np.load(arguments.data)))
    start = time.perf_counter()
    run.compile()
    compile_seconds = time.perf_counter() - start
    run.timed(arguments.warmup)
    warmup_seconds = time.perf_counter() - start
    best: dict[str, Any] = {}
    speeds: list[float] = []
    sums: dict[str, int] = {}
    for _ in turns(arguments):
        best = best or adamw(run) | products(arguments.size)  # alone on the device, in a turn
        seconds, counts = run.timed(arguments.updates)
        speeds.append(counts["examples"] / seconds)
        sums = {key: sums.get(key, 0) + count for key, count in counts.items()}
        speed = statistics.median(speeds)
        yield {
            "samples_per_second": speed,
            "seconds_per_update": arguments.batch / speed,
            "real_tokens_per_second": speed * sums["real_tokens"] / sums["examples"],
            "attended_keys_per_second": speed * sums["attended_keys"] / sums["examples"],
            "real_per_computed_token": sums["real_tokens"] / sums["computed_tokens"],
            "peak_mib": run.peak_mib(),
            "compile_seconds": compile_seconds,
            "warmup_seconds": warmup_seconds,  # compilation included
            "last_loss": run.loss,
            "repeats": speeds,
            "shapes": [f"{rows} x {run.plan.row_length}" for rows in run.plan.row_counts],
            "versions": {name: version(name) for name in PACKAGES},
            **best,
        }


def turns(arguments: argparse.Namespace) -> Iterator[Any]:
    """As many as asked for; with --turns whenever a line comes in, until there are no more."""
    if not arguments.turns:
        return iter(range(arguments.repeats))
    print("ready", flush=True)
    return itertools.islice(sys.stdin, arguments.repeats)


class Run:
    """A run of updates, from its plan to its compiled programs."""

    def __init__(
        self, arguments: argparse.Namespace, bert: BertConfig, data: dict[str, np.ndarray]
    ) -> None:
        self.bert, self.batch_size, self.dtype = bert, arguments.batch, arguments.dtype
        ids, offsets = data["input_ids"], data["offsets"]
        self.examples = Examples(Tokens(ids, np.zeros_like(ids), offsets, 0, 0.0), data["labels"])
        self.total = arguments.warmup + arguments.repeats * arguments.updates
        self.plan = plan_training(
            self.examples,
            batch_size=self.batch_size,
            seed=0,
            steps=self.total,
            packing="pack",
            work=work_for(bert, arguments.platform, arguments.dtype),
        )
        self.mesh = make_mesh(Mesh(1, 1, 1), bert)
        self.optimizer = optimizer_for(Optim(), self.total)
        self.state = init_state(init_params(bert, 0), self.mesh, self.optimizer, Method())
        self.seeds = {"dropout": np.uint32(0)}
        self.programs: dict[int, Any] = {}
        self.next, self.loss = 0, 0.0

    def compile(self) -> None:
        step = make_train_step(
            self.bert,
            head_named("single_label"),
            mesh=self.mesh,
            shardings=state_shardings(self.mesh, self.state),
            optimizer=self.optimizer,
            loss=Loss(),
            dtype=self.dtype,
        )

        def compiled(rows: int) -> Any:
            empty = empty_batch(self.examples, self.plan, rows)
            return compile_step(step, self.state, empty, self.seeds)

        counts = self.plan.row_counts
        at_once = 1 if jax.default_backend() == "cpu" else 3  # as run/compile.py does
        with ThreadPoolExecutor(at_once) as pool:
            self.programs = dict(zip(counts, pool.map(compiled, counts), strict=True))

    def timed(self, count: int) -> tuple[float, dict[str, int]]:
        """Runs updates as the real loop does; returns their seconds and what they had."""
        sums: dict[str, int] = {}

        def read(update: int, values: dict[str, Any], counts: dict[str, int]) -> None:
            if not values["finite"]:
                raise SystemExit(f"update {update} was not finite: its speed means nothing")
            self.loss = float(values["loss"] / values["normalizer"])
            sums.update({name: sums.get(name, 0) + number for name, number in counts.items()})

        in_flight = InFlight(read)
        jax.block_until_ready(self.state)
        start = time.perf_counter()
        for _ in range(count):
            batch = train_batch(
                self.examples, self.plan, batch_size=self.batch_size, seed=0, step=self.next
            )
            counts = count_batch(batch)
            in_flight.make_room()
            program, sent = self.programs[batch["input_ids"].shape[1]], time.perf_counter()
            self.state, values = program(self.state, batch, self.seeds)
            self.next += 1
            in_flight.add(self.next, values, counts, sent)
        in_flight.settle()
        jax.block_until_ready(self.state)
        return time.perf_counter() - start, sums

    def peak_mib(self) -> float:
        """The allocator's peak; where none is counted, what the compiler says."""
        stats = jax.devices()[0].memory_stats() or {}
        needed = max(needed_by(program) for program in self.programs.values())
        return stats.get("peak_bytes_in_use", needed) / MIB


def adamw(run: Run, count: int = 50) -> dict[str, float]:
    """AdamW alone, on the run's own parameters and moments, which it changes a little.

    In one program, and sent one by one: what these take longer is Python and the runtime handing
    some hundred arrays in and out.
    """
    numbers = {
        "step": jnp.int32(run.total // 10),
        "norm": jnp.float32(1),
        "normalizer": jnp.float32(1),
        "finite": jnp.bool_(True),
    }
    params, optimizer = run.state["params"], run.state["optimizer"]
    gradients = jax.tree.map(lambda leaf: leaf * 1e-3, params)

    def update(params: Any, optimizer: Any, gradients: Any, numbers: Any) -> Any:
        return run.optimizer.apply(params, optimizer, gradients, **numbers)

    def many(params: Any, optimizer: Any, gradients: Any, numbers: Any) -> Any:
        def one(_: Any, state: Any) -> Any:
            return update(*state, gradients, numbers)

        return jax.lax.fori_loop(0, count, one, (params, optimizer))

    seconds = []
    for function, calls in ((many, 1), (update, count)):
        program = jax.jit(function, donate_argnums=(0, 1))
        params, optimizer = jax.block_until_ready(program(params, optimizer, gradients, numbers))
        start = time.perf_counter()
        for _ in range(calls):
            params, optimizer = program(params, optimizer, gradients, numbers)
        jax.block_until_ready(params)
        seconds.append((time.perf_counter() - start) / count)
    run.state |= {"params": params, "optimizer": optimizer}  # the donated ones are gone
    moved = ADAMW_BYTES * sum(leaf.size for leaf in jax.tree.leaves(params))
    return {
        "adamw_seconds": seconds[0],
        "adamw_sent_seconds": seconds[1],
        "adamw_gb_per_second": moved / seconds[0] / 1e9,
    }


def products(size: int, count: int = 20, repeats: int = 5) -> dict[str, Any]:
    """Dense bfloat16 products of random numbers: zeros would draw less power and run faster."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul)

    def send(number: int) -> jax.Array:
        for _ in range(number - 1):
            product(left, right)  # not kept: each result takes as much memory as a factor
        return product(left, right)

    jax.block_until_ready(send(3))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(send(count))
        seconds.append((time.perf_counter() - start) / count)
    clocks = nvidia_smi(
        "clocks.sm",
        "clocks.mem",
        "power.draw",
        "temperature.gpu",
        meanwhile=lambda: jax.block_until_ready(send(count)),
    )
    flops = 2 * size**3 / statistics.median(seconds)
    return {"matmul_tflops": flops / 1e12, "matmul_size": size, "under_load": clocks}


def description() -> dict[str, Any]:
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "limit_gib": round(limit / 2**30, 1),  # what JAX may take of it
        **nvidia_smi("driver_version", "memory.total", "clocks.max.sm", "power.limit"),
    }


def nvidia_smi(
    *names: str, meanwhile: Callable[[], Any] = lambda: time.sleep(0.05)
) -> dict[str, str]:
    """What the driver says of the GPU in use; {} where there is no such program.

    `meanwhile` is called until it has said so: that takes longer than all the work that can be sent
    to a GPU ahead of time.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible.split(',')[0]}")
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return {}
    deadline = time.monotonic() + 60
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        meanwhile()
    values = process.communicate()[0].partition("\n")[0].split(", ")
    if process.returncode or len(values) != len(names):
        return {}
    return dict(zip(names, values, strict=True))


if __name__ == "__main__":
    main()
