"""The number of updates of a run, and the row shapes of its updates and its evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.config import Config, seed_for
from flaxbert.data.batches import (
    plan_inference,
    plan_training,
    steps_per_epoch,
    total_steps,
)
from flaxbert.data.pack import RowPlan
from flaxbert.loop.mesh import row_multiple
from flaxbert.run.inputs import Inputs
from flaxbert.run.row_costs import work_for


@dataclasses.dataclass(frozen=True)
class Shapes:
    train: RowPlan
    validation: tuple[RowPlan, ...] | None
    total: int  # updates
    per_epoch: int


def plan_shapes(config: Config, inputs: Inputs, mesh: Mesh, dtype: str, accumulate: int) -> Shapes:
    """Plans rows and updates for a mesh, in `accumulate` micro-batches."""
    count, train = len(inputs.train), config.train
    total = total_steps(count, train.batch_size, epochs=train.epochs, steps=train.steps)
    work = work_for(inputs.bert, mesh.devices.flat[0].platform, dtype, mesh.shape["model"])
    multiple = row_multiple(mesh)
    training = plan_training(
        inputs.train,
        batch_size=train.batch_size,
        seed=seed_for(config, "data"),
        steps=total,
        packing=config.data.packing,
        accumulate=accumulate,
        row_multiple=multiple,
        row_length=config.data.row_length,
        work=work,
    )
    validation = None
    if inputs.validation:
        lengths = [examples.tokens.lengths for examples in inputs.validation.values()]
        validation = plan_inference(
            np.concatenate(lengths),
            row_multiple=multiple,
            packing=config.data.packing,
            work=work,
        )
    return Shapes(training, validation, total, steps_per_epoch(count, train.batch_size))


def resolve_dtype(asked: str, device: Any = None) -> str:
    """Returns the compute dtype on a device (None: the first one of this machine).

    auto is bfloat16 on TPUs and on GPUs from Ampere on. On CPUs it is float32: bfloat16 was no
    faster there in this program.
    """
    if asked != "auto":
        return asked
    device = jax.devices()[0] if device is None else device
    if device.platform == "gpu":
        try:
            capability = float(getattr(device, "compute_capability", 0))
        except ValueError:  # not NVIDIA's numbering: current AMD GPUs all compute bfloat16 fast
            capability = 8.0
        return "bfloat16" if capability >= 8 else "float32"
    return "bfloat16" if device.platform == "tpu" else "float32"
