"""One run: its config, inputs, mesh and planned shapes, built once and passed as one object."""

from __future__ import annotations

import dataclasses
import functools

import jax
from jax.sharding import Mesh

from flaxbert.config import Config, Loss
from flaxbert.data.batches import WHOLE, Share
from flaxbert.heads import Head
from flaxbert.hosts.group import SingleProcess
from flaxbert.loop.cadence import Cadence
from flaxbert.loop.mesh import make_mesh, row_blocks
from flaxbert.loop.step import State
from flaxbert.methods import Method, method_for
from flaxbert.optim import Optimizer, optimizer_for
from flaxbert.run import consistency
from flaxbert.run.inputs import Inputs
from flaxbert.run.shapes import Shapes, plan_shapes
from flaxbert.shell.console import say


def share_of(mesh: Mesh) -> Share:
    """Returns the rows of a batch that this process lays out."""
    blocks, count = row_blocks(mesh)
    return WHOLE if len(blocks) == count else Share(blocks, count)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run before anything is compiled."""

    config: Config
    inputs: Inputs
    mesh: Mesh
    dtype: str  # compute dtype: float32 or bfloat16
    shapes: Shapes
    group: SingleProcess  # the processes of the run

    @classmethod
    def plan_here(cls, config: Config, inputs: Inputs, group: SingleProcess, dtype: str) -> Run:
        """Plans a run on this machine's devices."""
        mesh = make_mesh(config.mesh, inputs.bert)
        consistency.check_collectives(group)
        return cls.plan(config, inputs, mesh, dtype, group)

    @classmethod
    def plan(
        cls,
        config: Config,
        inputs: Inputs,
        mesh: Mesh,
        dtype: str,
        group: SingleProcess | None = None,
    ) -> Run:
        """Plans a run in the config's micro-batches; one if it leaves their number open."""
        shapes = plan_shapes(config, inputs, mesh, dtype, config.train.accumulate or 1)
        return cls(config, inputs, mesh, dtype, shapes, group or SingleProcess())

    def in_micro_batches(self, accumulate: int) -> Run:
        """Returns the same run with each update in this many micro-batches."""
        shapes = plan_shapes(self.config, self.inputs, self.mesh, self.dtype, accumulate)
        return dataclasses.replace(self, shapes=shapes)

    def in_one_micro_batch(self) -> Run:
        """Returns the run with the rows of one micro-batch as its whole update."""
        train = dataclasses.replace(self.shapes.train, accumulate=1)
        return dataclasses.replace(self, shapes=dataclasses.replace(self.shapes, train=train))

    @property
    def head(self) -> Head:
        return self.inputs.head

    @property
    def loss(self) -> Loss:
        """The options of the loss, with class weights as numbers."""
        return dataclasses.replace(self.config.loss, class_weights=self.inputs.class_weights)

    @property
    def share(self) -> Share:
        return share_of(self.mesh)

    @property
    def cadence(self) -> Cadence:
        config, per_epoch = self.config, self.shapes.per_epoch
        return Cadence(
            total=self.shapes.total,
            per_epoch=per_epoch,
            log_every=config.log.every,
            eval_every=config.train.eval_every or per_epoch,
            save_every=config.checkpoint.every or per_epoch,
            patience=config.train.patience,
            nonfinite_limit=config.train.nonfinite_limit,
            best_metric=self.inputs.best_metric,
        )

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        return optimizer_for(self.config.optim, self.shapes.total)

    @functools.cached_property
    def method(self) -> Method:
        return method_for(self.config.method, self.inputs.bert)

    def announce(self, state: State) -> None:
        """Logs devices, model, target, data and shapes before anything compiles."""
        trained, frozen = (
            sum(leaf.size for leaf in jax.tree.leaves(state.get(part, {}))) / 1e6
            for part in ("params", "frozen")
        )
        device = jax.devices()[0]
        inputs, rows, train = self.inputs, self.shapes.train, self.config.train
        axes = ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        shapes = ", ".join(f"{count} x {rows.row_length}" for count in rows.row_counts)
        micro = f" in {rows.accumulate} micro-batches" if rows.accumulate > 1 else ""
        names = inputs.labels.names
        labels = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        tokens = int(inputs.train.tokens.lengths.sum())
        total, per_epoch = self.shapes.total, self.shapes.per_epoch
        for line in (
            f"devices: {self.mesh.devices.size} {device.device_kind} ({device.platform}); "
            f"mesh {axes}",
            f"model: {self.config.model.path}, {trained + frozen:.1f} M parameters, {self.dtype} "
            "compute, float32 parameters"
            + (f"; {trained:.3f} M of them are trained" if frozen else ""),
            f"target: {inputs.labels.problem}, labels {labels}",
            *inputs.lines,
            f"training: {total} updates ({total / per_epoch:.2f} epochs of {tokens} tokens) of "
            f"{train.batch_size} sequences{micro}",
            f"rows: {shapes} tokens ({self.config.data.packing}), up to {rows.slots} sequences a "
            f"row, {100 * (1 - rows.efficiency):.1f} % padding",
        ):
            say(line)
