"""Compiles the programs of a run, for a mesh whose devices need not be here, and adds up costs.

Note: only the fullest update is compiled. Smaller ones have fewer rows: their time is that of the
optimizer, and a share of the rest.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flaxbert.config import Config
from flaxbert.data.batches import empty_batch, inference_batches
from flaxbert.errors import ConfigError, is_out_of_memory
from flaxbert.heads import abstract_params
from flaxbert.loop import memory
from flaxbert.loop.flops import model_flops, peak_of
from flaxbert.loop.forward import forward_program
from flaxbert.loop.mesh import batch_sharding, make_mesh, row_multiple
from flaxbert.loop.step import abstract_state, compile_step
from flaxbert.methods import params_of
from flaxbert.model.bert_model import INPUTS
from flaxbert.planning.chips import Chip
from flaxbert.planning.estimate import Memory, Program, describe, memory_in
from flaxbert.planning.largest import Largest, by_proportion, largest_rows
from flaxbert.planning.topology import Target
from flaxbert.run.compile import fitted, train_step_of
from flaxbert.run.inputs import Inputs
from flaxbert.run.one_run import Run
from flaxbert.run.shapes import resolve_dtype

# Parts of an update that do not grow with its rows.
_FIXED = ("optimizer", "gradient_norm")


@dataclasses.dataclass(frozen=True)
class Update:
    """The fullest update of the run, and the average one."""

    sequences: int
    rows: int  # of one micro-batch
    row_length: int
    accumulate: int
    row_counts: tuple[int, ...]
    padding_share: float
    real_tokens: float  # of the average update
    computed_tokens: float  # of the average update
    program: Program
    flops_of_model: float  # of the fullest update's computed tokens, all devices
    flops_of_real_tokens: float  # of the average update, all devices
    largest: Largest | None  # None = the limit is unknown
    seconds: float  # of the average update by the compiler's estimate; 0 = none
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One pass over the validation data."""

    batches: int
    shapes: tuple[tuple[int, int], ...]  # rows, row length
    programs: tuple[Program, ...]
    seconds: float  # by the compiler's estimate; 0 = none


@dataclasses.dataclass(frozen=True)
class Planned:
    """The costs of a run."""

    devices: int
    hosts: int
    kind: str
    mesh: dict[str, int]
    dtype: str
    updates: int
    update: Update
    evaluation: Evaluation | None
    evaluations: int
    exchange_seconds: float  # of an update at least; 0 = none, or unknown
    peak_flops: float  # of all devices; 0 = unknown

    @property
    def bytes_per_token(self) -> float:
        """Bytes accessed for each computed token of the fullest update; 0 = unknown."""
        tokens = self.update.rows * self.update.row_length * self.update.accumulate / self.devices
        return self.update.program.bytes_accessed / tokens

    @property
    def slowest_seconds(self) -> float:
        """Seconds of an update if computation and exchanges do not overlap."""
        return self.update.seconds + self.exchange_seconds

    @property
    def sequences_per_second(self) -> float:
        return self.update.sequences / self.update.seconds if self.update.seconds else 0.0

    @property
    def mfu(self) -> float | None:
        """MFU of the average update, on real tokens; None if time or peak are unknown."""
        if not self.update.seconds or not self.peak_flops:
            return None
        return self.update.flops_of_real_tokens / self.update.seconds / self.peak_flops

    @property
    def seconds(self) -> float:
        """Seconds of the run: updates and evaluations, without saves."""
        evaluation = self.evaluation.seconds if self.evaluation else 0.0
        return self.updates * self.update.seconds + self.evaluations * evaluation


def plan_run(
    config: Config, inputs: Inputs, target: Target, *, find_largest: bool = False
) -> Planned:
    """Compiles the run's fullest update and its evaluation for the target's devices.

    `find_largest` compiles updates of more rows as well, until they do not fit. Raises ConfigError
    if the mesh or the update does not fit the devices.
    """
    bert, devices, chip = inputs.bert, target.devices, target.chip
    mesh = make_mesh(config.mesh, bert, devices)
    dtype = resolve_dtype(config.model.dtype, devices[0])
    limit = memory.share_of(chip.memory) if chip else memory.limit_of(devices[0])
    run = Run.plan(config, inputs, mesh, dtype)
    state = abstract_state(abstract_params(bert), mesh, run.optimizer, run.method)
    step = train_step_of(run, state)

    taken = 0.0

    def compiled(run: Run, rows: int) -> Any:
        nonlocal taken
        start = time.perf_counter()
        batch = empty_batch(inputs.train, run.shapes.train, rows)
        program = compile_step(step, state, batch, {"dropout": np.uint32(0)})
        taken = time.perf_counter() - start
        return program

    def memory_of(rows: int) -> Memory | None:
        """Returns the memory of an update without micro-batches; None if it cannot compile."""
        try:
            return memory_in(compiled(run.in_one_micro_batch(), rows), state, limit)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    run, fullest, _ = fitted(run, compiled, lambda program: memory.fit(program, limit))
    shapes = run.shapes
    program = describe(fullest, mesh, state, limit, shapes.train.accumulate, target.kernel_cycles)
    update = _update(run, program, chip, taken)
    del fullest
    evaluation = _evaluation(run, state, target, limit)
    if limit:
        found = _largest(update, row_multiple(mesh), memory_of if find_largest else None)
        update = dataclasses.replace(update, largest=found)
    every = config.train.eval_every or shapes.per_epoch
    return Planned(
        devices=mesh.devices.size,
        hosts=len({device.process_index for device in mesh.devices.flat}),
        kind=devices[0].device_kind,
        mesh=dict(mesh.shape),
        dtype=dtype,
        updates=shapes.total,
        update=update,
        evaluation=evaluation,
        evaluations=-(-shapes.total // every) if evaluation else 0,
        exchange_seconds=program.exchange_seconds(chip, target.links) if chip else 0.0,
        peak_flops=peak_of(mesh, dtype),
    )


def _update(run: Run, program: Program, chip: Chip | None, compile_seconds: float) -> Update:
    bert, shape, train = run.inputs.bert, run.shapes.train, run.inputs.train
    lengths = train.tokens.lengths
    sequences = min(run.config.train.batch_size, len(train))
    each = sequences / len(lengths)  # of an epoch
    rows, length = shape.row_counts[-1], shape.row_length
    fullest = shape.accumulate * rows * length
    computed = min(float(fullest), float(lengths.sum()) * each / shape.efficiency)
    seconds = program.seconds(chip)
    if seconds:
        fixed = sum(program.parts.get(part, 0) for part in _FIXED) / program.cycles
        seconds *= fixed + (1 - fixed) * computed / fullest
    return Update(
        sequences=sequences,
        rows=rows,
        row_length=length,
        accumulate=shape.accumulate,
        row_counts=shape.row_counts,
        padding_share=1 - shape.efficiency,
        real_tokens=float(lengths.sum()) * each,
        computed_tokens=computed,
        program=program,
        flops_of_model=model_flops(bert, fullest, fullest * length),
        flops_of_real_tokens=each
        * model_flops(bert, int(lengths.sum()), int(np.square(lengths).sum())),
        largest=None,
        seconds=seconds,
        compile_seconds=compile_seconds,
    )


def _largest(
    update: Update, multiple: int, memory_of: Callable[[int], Memory | None] | None
) -> Largest:
    """Returns what fits at most; by proportion if nothing is to be compiled."""
    known = update.program.memory
    too_many, held = 0, None
    if memory_of is not None:
        is_known = update.accumulate == 1

        def of(rows: int) -> Memory | None:
            return known if is_known and rows == update.rows else memory_of(rows)

        rows, too_many, held = largest_rows(of, update.rows, multiple)
    elif update.accumulate > 1:  # other programs: they hold the sum of gradients too
        rows = 0
    else:
        rows = by_proportion(known, update.rows, multiple)
    sequences = rows * update.sequences // (update.rows * update.accumulate)
    return Largest(rows, sequences, too_many, held)


def _evaluation(run: Run, state: Any, target: Target, limit: int) -> Evaluation | None:
    mesh, shapes = run.mesh, run.shapes.validation
    if shapes is None:
        return None
    counts: dict[tuple[int, int], int] = {}
    batches: dict[tuple[int, int], Any] = {}
    for examples in run.inputs.validation.values():
        for batch in inference_batches(examples, shapes):
            shape = batch["input_ids"].shape
            counts[shape] = counts.get(shape, 0) + 1
            batches.setdefault(shape, batch)
    forward = forward_program(run.inputs.bert, mesh=mesh, dtype=run.dtype)
    rows = batch_sharding(mesh, micro_batches=False)

    def program(batch: Any) -> Program:
        inputs = {
            name: jax.ShapeDtypeStruct(batch[name].shape, batch[name].dtype, sharding=rows)
            for name in INPUTS
        }
        try:
            compiled = forward.lower(params_of(state), inputs).compile()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            shape = " x ".join(map(str, batch["input_ids"].shape))
            raise ConfigError(
                "the device has too little memory: its compiler refuses an evaluation of "
                f"{shape} tokens beside parameters and moments. Spread the parameters "
                "over devices with config.mesh.fsdp, or lower config.data.max_length."
            ) from error
        return describe(compiled, mesh, state, limit, kernel_cycles=target.kernel_cycles)

    programs = {shape: program(batch) for shape, batch in batches.items()}
    return Evaluation(
        batches=sum(counts.values()),
        shapes=tuple(programs),
        programs=tuple(programs.values()),
        seconds=sum(
            counts[shape] * found.seconds(target.chip) for shape, found in programs.items()
        ),
    )
