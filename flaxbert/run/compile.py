"""The compiled programs of a run: its update in every planned shape, and its evaluation.

All are there before the first update, so that no shape is met later that has to be compiled while a
signal waits. The surprising thing: the plan may change here. An update that does not fit the device
is computed in more micro-batches; it stays the same update.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.config import Config, seed_for
from flaxbert.data.batches import WHOLE, Batch, Share, empty_batch, inference_batches
from flaxbert.errors import ConfigError, is_out_of_memory
from flaxbert.heads import Task, task_for
from flaxbert.hosts.group import SingleProcess
from flaxbert.loop import memory
from flaxbert.loop.agreement import Agreement
from flaxbert.loop.evaluation import evaluate
from flaxbert.loop.mesh import on_mesh, row_blocks, row_multiple, state_shardings
from flaxbert.loop.step import compile_step, make_train_step
from flaxbert.model.heads import Params
from flaxbert.optim.adamw import make_schedule
from flaxbert.run.inputs import Plans, Prepared, plan
from flaxbert.run.result_names import merged
from flaxbert.shell.console import say
from flaxbert.shell.free_memory import give_back_memory

Update = Callable[[Any, Batch], Any]


def train_step_of(
    config: Config,
    prepared: Prepared,
    plans: Plans,
    mesh: Mesh,
    state: Any,
    dtype: str,
    *,
    agreeing: bool = False,
) -> Any:
    """Returns the run's jitted train step, for a real state or an abstract one.

    Of several `agreeing` processes it takes what each of them says (loop/agreement.py).
    """
    return make_train_step(
        prepared.bert,
        task_for(prepared.labels.problem),
        mesh=mesh,
        shardings=state_shardings(mesh, state),
        schedule=make_schedule(config.optim, plans.total),
        optim=config.optim,
        loss=config.loss,
        dtype=dtype,
        agreeing=agreeing,
    )


def compile_update(
    step: Any,
    state: Any,
    config: Config,
    prepared: Prepared,
    plans: Plans,
    mesh: Mesh,
    group: SingleProcess,
    agreement: Agreement | None = None,
) -> tuple[Plans, Update]:
    """Compiles every planned shape; returns the plans that fit, and update(state, batch).

    Several processes of a `group` give an `agreement`; a batch then holds the rows of this one.

    Raises:
      ConfigError: not even the smallest micro-batch fits.
    """
    seeds = {"dropout": np.uint32(seed_for(config, "dropout"))}
    start = time.perf_counter()

    def said() -> list[Any]:
        return [agreement.said()] if agreement else []

    def compiled(plans: Plans, rows: int) -> Any:
        batch = empty_batch(prepared.train, plans.train, rows)
        program = compile_step(step, state, batch, seeds, *said())
        give_back_memory()  # the compiler's
        return program

    def compiled_by_all(plans: Plans, rows: int) -> Any:
        """What the compiler of one process refuses is refused for all: they have one plan."""
        program, refusal = None, None
        try:
            program = compiled(plans, rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            refusal = error
        refused = next(filter(None, group.all_gather(str(refusal or ""))), "")
        if refused:
            raise refusal or RuntimeError(f"in another process: {refused}")
        return program

    device = jax.local_devices()[0]
    # The least of all machines: the plan is one for all. Processes share the memory of a host.
    sharing = group.local_count if device.platform == "cpu" else 1
    limit = min(group.all_gather(memory.limit_of(device) // sharing))
    fit = functools.partial(fit_of_all, group, limit)
    plans, largest, found = fitting(compiled_by_all, fit, config, prepared, plans, mesh)
    *smaller, rows = plans.train.row_counts
    # Accelerators' compilers leave cores idle: a GPU's times kernels to choose among them, half a
    # minute for each shape. A CPU's takes more memory than training does.
    # Compilers of several processes share their choices, and expect them in one order.
    at_once = 1 if device.platform == "cpu" or group.count > 1 else min(3, len(smaller))
    others = _each(lambda other: compiled(plans, other), smaller, at_once)
    programs = {rows: largest, **dict(zip(smaller, others, strict=True))}
    say(
        f"compiled {len(programs)} shapes in {time.perf_counter() - start:.1f} s; memory of an "
        f"update: {found}"
    )

    def update(state: Any, batch: Batch) -> Any:
        arrays = on_mesh(mesh, batch, micro_batches=True)
        return programs[arrays["input_ids"].shape[1]](state, arrays, seeds, *said())

    return plans, update


def fit_of_all(group: SingleProcess, limit: int, program: Any) -> memory.Fit:
    """Returns the fit of the process whose compiler needs the most: they have one plan."""
    found = memory.fit(program, limit)
    said = group.all_gather([found.needed, found.fixed])
    needed, fixed = map(max, zip(*said, strict=True))
    return dataclasses.replace(found, needed=needed, fixed=fixed)


def _each(function: Callable[[int], Any], values: Sequence[int], at_once: int) -> list[Any]:
    if at_once < 2:
        return [function(value) for value in values]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(function, values))


def fitting(
    compiled: Callable[[Plans, int], Any],
    fit: Callable[[Any], memory.Fit],
    config: Config,
    prepared: Prepared,
    plans: Plans,
    mesh: Mesh,
) -> tuple[Plans, Any, memory.Fit]:
    """Returns plans that fit, the program of their most rows, and its memory.

    `compiled(plans, rows)` compiles the update of so many rows; `fit(program)` says what it needs
    of a device, and may take.

    Raises:
      ConfigError: not even the smallest micro-batch fits.
    """
    while True:
        try:
            largest = compiled(plans, plans.train.row_counts[-1])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if config.train.accumulate:
                rows, length = plans.train.row_counts[-1], plans.train.row_length
                raise ConfigError(
                    f"the device has too little memory: its compiler refuses micro-batches of "
                    f"{rows} x {length} tokens. With config.train.accumulate=0 an update is "
                    "computed in as many micro-batches as it takes."
                ) from error
            # TPUs refuse such a program while it is compiled and do not say by how much.
            plans = _smaller(config, prepared, plans, mesh, None)
            continue
        found = fit(largest)
        if found.fits:
            return plans, largest, found
        if config.train.accumulate:
            say(
                f"flaxbert: WARNING: an update needs {found} of memory. With train.accumulate=0 it "
                "is computed in as many micro-batches as it takes."
            )
            return plans, largest, found
        plans = _smaller(config, prepared, plans, mesh, found)


def _smaller(
    config: Config, prepared: Prepared, plans: Plans, mesh: Mesh, found: memory.Fit | None
) -> Plans:
    """Returns plans with smaller micro-batches.

    Raises:
      ConfigError: parameters and moments alone do not fit, or not even one row a device.
    """
    multiple, train = row_multiple(mesh), plans.train
    most = train.accumulate * train.row_counts[-1] // multiple
    accumulate = memory.smaller(train.accumulate, found, most)
    needs = f"needs {found} of memory" if found else "is refused by the compiler"
    if not accumulate:
        raise ConfigError(
            f"the device has too little memory: an update in {train.accumulate} micro-batches of "
            f"{train.row_counts[-1]} x {train.row_length} tokens {needs}, and smaller ones do not "
            "help. Lower config.data.max_length, or spread the parameters over devices with "
            "config.mesh.fsdp."
        )
    plans = plan(config, prepared, mesh, accumulate)
    say(
        f"an update {needs}: it is computed in {accumulate} micro-batches of up to "
        f"{plans.train.row_counts[-1]} x {train.row_length} tokens"
    )
    return plans


def compile_evaluation(
    config: Config,
    prepared: Prepared,
    plans: Plans,
    forward: Any,
    task: Task,
    check: Callable[[], None],
    params: Params,
    mesh: Mesh,
    group: SingleProcess,
) -> Callable[[Params], dict[str, Any]] | None:
    """Returns evaluate(params), its shapes compiled; None without validation data.

    `check` is called after every batch, and may raise.
    """
    shapes = plans.validation
    if shapes is None:
        return None
    start, seen = time.perf_counter(), set()
    share = share_of(mesh)
    for examples in prepared.validation.values():
        for batch in inference_batches(examples, shapes, share):
            if batch["input_ids"].shape not in seen:
                seen.add(batch["input_ids"].shape)
                forward(params, batch).block_until_ready()
    say(f"compiled evaluation in {time.perf_counter() - start:.1f} s")

    def after_batch(_: int) -> None:
        group.beat()
        check()

    def evaluate_all(params: Params) -> dict[str, Any]:
        results = {
            suffix: evaluate(
                forward,
                params,
                inference_batches(examples, shapes, share),
                examples.labels,
                task=task,
                loss=config.loss,
                after_batch=after_batch,
            )
            for suffix, examples in prepared.validation.items()
        }
        # What follows from it must be the same everywhere, to the last bit.
        return group.on_first(lambda: merged(results))

    return evaluate_all


def share_of(mesh: Mesh) -> Share:
    """Returns the rows that this process lays out."""
    blocks, count = row_blocks(mesh)
    return WHOLE if len(blocks) == count else Share(blocks, count)
