"""The compiled programs of a run: its update in every planned shape, and its evaluation.

All are compiled before the first update, so that a signal never has to wait for a compilation
later. An update that does not fit the device is split into more micro-batches: it stays the same
update.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from flaxbert.config import seed_for
from flaxbert.data.batches import Batch, empty_batch, inference_batches
from flaxbert.errors import ConfigError, is_out_of_memory
from flaxbert.hosts.group import SingleProcess
from flaxbert.loop import memory
from flaxbert.loop.agreement import Agreement
from flaxbert.loop.evaluation import evaluate
from flaxbert.loop.forward import make_forward
from flaxbert.loop.mesh import on_mesh, row_multiple, state_shardings
from flaxbert.loop.step import compile_step, make_train_step
from flaxbert.model.binding import Params
from flaxbert.run.one_run import Run
from flaxbert.run.result_names import merged
from flaxbert.shell.console import say
from flaxbert.shell.free_memory import give_back_memory

Update = Callable[[Any, Batch], Any]
Compiled = Callable[[Run, int], Any]  # a run, rows of its update -> the program


def train_step_of(run: Run, state: Any, *, agreeing: bool = False) -> Any:
    """Returns the run's jitted train step, for a real state or an abstract one.

    With `agreeing` it takes the votes of several processes (loop/agreement.py).
    """
    return make_train_step(
        run.inputs.bert,
        run.head,
        mesh=run.mesh,
        shardings=state_shardings(run.mesh, state),
        optimizer=run.optimizer,
        loss=run.loss,
        dtype=run.dtype,
        agreeing=agreeing,
    )


@dataclasses.dataclass(frozen=True)
class CompiledUpdate:
    """The update of a run, compiled for every planned number of rows."""

    run: Run  # in as many micro-batches as fit the devices
    programs: dict[int, Any]  # rows of a micro-batch: program
    seeds: dict[str, Any]
    agreement: Agreement | None

    def __call__(self, state: Any, batch: Batch) -> Any:
        """Sends this process's rows of an update to the devices."""
        arrays = on_mesh(self.run.mesh, batch, micro_batches=True)
        program = self.programs[arrays["input_ids"].shape[1]]
        return program(state, arrays, self.seeds, *_said(self.agreement))


def compile_update(run: Run, state: Any, agreement: Agreement | None) -> CompiledUpdate:
    """Compiles every planned shape; several processes pass an `agreement`.

    Raises:
      ConfigError: not even the smallest micro-batch fits.
    """
    step = train_step_of(run, state, agreeing=agreement is not None)
    seeds = {"dropout": np.uint32(seed_for(run.config, "dropout"))}
    group, start = run.group, time.perf_counter()

    def compiled(run: Run, rows: int) -> Any:
        batch = empty_batch(run.inputs.train, run.shapes.train, rows)
        program = compile_step(step, state, batch, seeds, *_said(agreement))
        give_back_memory()  # the compiler's
        return program

    device = jax.local_devices()[0]
    # The minimum of all machines, as all have one plan. Processes share the memory of a host.
    sharing = group.local_count if device.platform == "cpu" else 1
    limit = min(group.all_gather(memory.limit_of(device) // sharing))
    run, largest, fit = fitted(
        run, _compiled_by_all(compiled, group), lambda program: fit_of_all(group, limit, program)
    )
    *smaller, rows = run.shapes.train.row_counts
    # Compilers for accelerators leave cores idle: a GPU's autotunes kernels, half a minute for each
    # shape. A CPU's takes more memory than training does. The autotuners of several processes
    # exchange results and expect them in one order.
    at_once = 1 if device.platform == "cpu" or group.count > 1 else min(3, len(smaller))
    others = _each(lambda other: compiled(run, other), smaller, at_once)
    programs = {rows: largest, **dict(zip(smaller, others, strict=True))}
    say(
        f"compiled {len(programs)} shapes in {time.perf_counter() - start:.1f} s; memory of an "
        f"update: {fit}"
    )
    return CompiledUpdate(run, programs, seeds, agreement)


def _said(agreement: Agreement | None) -> list[Any]:
    return [agreement.said()] if agreement else []


def _compiled_by_all(compiled: Compiled, group: SingleProcess) -> Compiled:
    """Makes an out-of-memory error of one process's compiler one of all: they have one plan."""

    def by_all(run: Run, rows: int) -> Any:
        program, refusal = None, None
        try:
            program = compiled(run, rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            refusal = error
        refused = next(filter(None, group.all_gather(str(refusal or ""))), "")
        if refused:
            raise refusal or RuntimeError(f"in another process: {refused}")
        return program

    return by_all


def fit_of_all(group: SingleProcess, limit: int, program: Any) -> memory.Fit:
    """Returns the largest memory need of all processes: they have one plan."""
    found = memory.fit(program, limit)
    said = group.all_gather([found.needed, found.fixed])
    needed, fixed = map(max, zip(*said, strict=True))
    return dataclasses.replace(found, needed=needed, fixed=fixed)


def _each(function: Callable[[int], Any], values: Sequence[int], at_once: int) -> list[Any]:
    if at_once < 2:
        return [function(value) for value in values]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(function, values))


def fitted(
    run: Run, compiled: Compiled, fit: Callable[[Any], memory.Fit]
) -> tuple[Run, Any, memory.Fit]:
    """Returns the run in as few micro-batches as fit, its largest program, and its memory.

    Args:
      run: as planned.
      compiled: compiles the update with a number of rows.
      fit: compares a program's memory with the limit.

    Raises:
      ConfigError: not even the smallest micro-batch fits.
    """
    asked = run.config.train.accumulate
    while True:
        try:
            largest = compiled(run, run.shapes.train.row_counts[-1])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if asked:
                rows, length = run.shapes.train.row_counts[-1], run.shapes.train.row_length
                raise ConfigError(
                    f"the device has too little memory: its compiler refuses micro-batches of "
                    f"{rows} x {length} tokens. With config.train.accumulate=0 an update is "
                    "computed in as many micro-batches as needed."
                ) from error
            # TPU compilers refuse such a program and do not say how much is missing.
            run = _smaller(run, None)
            continue
        found = fit(largest)
        if not found.fits and asked:
            say(
                f"flaxbert: WARNING: an update needs {found} of memory. With train.accumulate=0 it "
                "is computed in as many micro-batches as needed."
            )
        if found.fits or asked:
            return run, largest, found
        run = _smaller(run, found)


def _smaller(run: Run, found: memory.Fit | None) -> Run:
    """Returns the run with smaller micro-batches.

    Raises:
      ConfigError: parameters and moments alone do not fit, or not even one row per device.
    """
    multiple, train = row_multiple(run.mesh), run.shapes.train
    most = train.accumulate * train.row_counts[-1] // multiple
    accumulate = memory.smaller(train.accumulate, found, most)
    needs = f"needs {found} of memory" if found else "is refused by the compiler"
    if not accumulate:
        raise ConfigError(
            f"the device has too little memory: an update in {train.accumulate} micro-batches of "
            f"{train.row_counts[-1]} x {train.row_length} tokens {needs}, and smaller ones do not "
            "help. Lower config.data.max_length, or shard the parameters over devices with "
            "config.mesh.fsdp."
        )
    run = run.in_micro_batches(accumulate)
    say(
        f"an update {needs}: it is computed in {accumulate} micro-batches of up to "
        f"{run.shapes.train.row_counts[-1]} x {train.row_length} tokens"
    )
    return run


Evaluate = Callable[[Params], dict[str, Any]]


def compile_evaluation(run: Run, params: Params, check: Callable[[], None]) -> Evaluate | None:
    """Compiles evaluation; returns evaluate(params), None without validation data.

    `check` is called after every batch and may raise.
    """
    shapes, inputs, group = run.shapes.validation, run.inputs, run.group
    if shapes is None:
        return None
    forward = make_forward(inputs.bert, mesh=run.mesh, dtype=run.dtype)
    start, seen = time.perf_counter(), set()
    for examples in inputs.validation.values():
        for batch in inference_batches(examples, shapes, run.share):
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
                inference_batches(examples, shapes, run.share),
                examples,
                head=run.head,
                names=inputs.labels.names,
                loss=run.loss,
                after_batch=after_batch,
            )
            for suffix, examples in inputs.validation.items()
        }
        # Decisions that follow must be the same in all processes, so the bits must be too.
        return group.on_first(lambda: merged(results))

    return evaluate_all
