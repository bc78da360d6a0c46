"""python -m flaxbert.train --config=FILE.py[:ARG] [--workdir=DIR] [--config.x.y=VALUE ...]

Fine-tunes a BERT checkpoint. The same command again resumes; a finished run exits 0 at once. This
file tells the story of a run from top to bottom: prepare model and data, plan the shapes, restore
or start the state, train, write the results.
"""

from __future__ import annotations

from flaxbert import glibc, interrupt

if __name__ == "__main__":
    glibc.restart_with_huge_pages("flaxbert.train")
    interrupt.install()  # before the slower imports

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from flaxbert import cli, identity
from flaxbert.config import Config, seed_for

if TYPE_CHECKING:
    # Imported where they are used: JAX and transformers take seconds, flags and errors should not.
    from jax.sharding import Mesh

    from flaxbert.data.batches import Batch, Examples
    from flaxbert.data.pack import Plan
    from flaxbert.loop.cadence import Cadence
    from flaxbert.prepare import Plans, Prepared
    from flaxbert.storage.workdir import Workdir


def define_flags(values: flags.FlagValues) -> None:
    cli.define_config(values)
    flags.DEFINE_string(
        "workdir", "", "Where the run lives; default runs/<config>[-ARG].", flag_values=values
    )


def main(values: flags.FlagValues, stop: cli.StopSignal) -> None:
    from flaxbert.storage.workdir import open_workdir

    config = cli.read_config(values)
    workdir = open_workdir(values.workdir or Path("runs") / cli.config_name(sys.argv[1:]))
    with workdir.store.locked(workdir.lock):
        run(config, workdir, stop)


def run(config: Config, workdir: Workdir, stop: cli.StopSignal) -> None:
    """Starts or resumes the run of `config` in an open, locked workdir."""
    begun = time.perf_counter()
    if workdir.started:
        identity.check_config(config, workdir)
        if workdir.finished:
            cli.say(f"{workdir.root}: this run is finished. Its model is in {workdir.model}.")
            return

    from flaxbert.export import export_model, restore_model, write_results
    from flaxbert.loop import control
    from flaxbert.loop.flops import Utilisation, peak_of
    from flaxbert.loop.optim import make_schedule
    from flaxbert.loop.predict import make_forward
    from flaxbert.loop.progress import Progress
    from flaxbert.loop.recorded import check_recorded
    from flaxbert.loop.sharding import make_mesh
    from flaxbert.loop.step import abstract_state, init_state
    from flaxbert.loop.writer import Writer
    from flaxbert.model.heads import abstract_params
    from flaxbert.prepare import best_metric_of, plan, prepare
    from flaxbert.programs import compile_evaluation, compile_update, train_step_of
    from flaxbert.storage import compiled
    from flaxbert.storage.checkpoint import Checkpoints
    from flaxbert.tasks import task_for

    compiled.keep()
    checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint.keep)
    newest = checkpoints.newest_valid() if workdir.started else None
    stored = {}
    if newest is not None:
        place = workdir.checkpoints / str(newest)
        stored = check_recorded(checkpoints.read_run(newest), place, newest)
        identity.check_source(workdir, stored)

    # Model files and data: what is known before a device is asked.
    prepared = prepare(
        config,
        workdir,
        resumed=newest is not None,
        dataset_revision=stored.get("dataset_revision", ""),
    )
    bert, task = prepared.bert, task_for(prepared.labels.problem)
    best_metric = best_metric_of(config, prepared)
    facts = identity.run_facts(config, prepared, stored)
    identity.check_data(workdir, stored, facts)

    # Shapes: the mesh, rows per update, number of updates.
    mesh = make_mesh(config.mesh, bert)
    plans = plan(config, prepared, mesh, config.train.accumulate or 1)

    # State: from the newest valid checkpoint, else from the pretrained weights.
    if newest is None:
        state, progress = init_state(prepared.load_params(), mesh), Progress()
        identity.start_workdir(config, workdir, prepared, facts)
    else:
        state = checkpoints.restore(newest, abstract_state(abstract_params(bert), mesh))
        progress = Progress.from_dict(stored)
        restore_model(workdir, progress)
        cli.say(f"resuming {workdir.root} after update {newest} of {plans.total}")

    learning_rate = make_schedule(config.optim, plans.total)
    step = train_step_of(config, prepared, plans, mesh, state, facts["dtype"])
    _announce(config, prepared, plans, mesh, facts["dtype"], state)
    plans, update = compile_update(step, state, config, prepared, plans, mesh)
    forward = make_forward(bert, mesh=mesh, dtype=facts["dtype"])
    hooks = control.Hooks(
        batch=functools.partial(_train_batch, config, prepared.train, plans.train),
        update=update,
        learning_rate=lambda step: float(learning_rate(step)),
        utilisation=Utilisation(bert, peak_of(mesh, facts["dtype"])).of,
        evaluate=compile_evaluation(config, prepared, plans, forward, task, stop, state["params"]),
        export=functools.partial(export_model, workdir, config, prepared, facts),
        started=begun,
        start_facts=compiled.told,
        run_facts=facts,
        interrupted=lambda: stop.requested,
    )
    cadence = _cadence(config, plans, best_metric)
    writer = Writer(
        workdir.metrics, step=progress.step, total=plans.total, evaluated=progress.evaluated
    )
    with stop.deferred(), _closing(checkpoints), _closing(writer):
        state = control.train(state, progress, cadence, hooks, checkpoints, writer)
    write_results(workdir, prepared, progress, cadence, hooks, state["params"])


def _cadence(config: Config, plans: Plans, best_metric: str) -> Cadence:
    from flaxbert.loop.cadence import Cadence

    return Cadence(
        total=plans.total,
        per_epoch=plans.per_epoch,
        log_every=config.log.every,
        eval_every=config.train.eval_every or plans.per_epoch,
        save_every=config.checkpoint.every or plans.per_epoch,
        patience=config.train.patience,
        nonfinite_limit=config.train.nonfinite_limit,
        best_metric=best_metric,
    )


@contextlib.contextmanager
def _closing(resource: Any) -> Iterator[None]:
    """Closes at the end. What goes wrong in closing ends the run, unless an error already does."""
    try:
        yield
    except BaseException:
        try:
            resource.close()
        except Exception as error:
            cli.say(f"flaxbert: error: while closing: {error}")
        raise
    resource.close()


def _announce(
    config: Config, prepared: Prepared, plans: Plans, mesh: Mesh, dtype: str, state: Any
) -> None:
    """Tells what will run before anything compiles."""
    import jax

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    device = jax.devices()[0]
    plan, train = plans.train, config.train
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    shapes = ", ".join(f"{rows} x {plan.row_length}" for rows in plan.row_counts)
    micro = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    labels = ", ".join(prepared.labels.names[:20])
    tokens = int(prepared.train.tokens.lengths.sum())
    for line in (
        f"devices: {mesh.devices.size} {device.device_kind} ({device.platform}); mesh {axes}",
        f"model: {config.model.path}, {parameters / 1e6:.1f} M parameters, {dtype} compute, "
        "float32 parameters",
        f"target: {prepared.labels.problem}, labels {labels}",
        *prepared.lines,
        f"training: {plans.total} updates ({plans.total / plans.per_epoch:.2f} epochs of {tokens} "
        f"tokens) of {train.batch_size} sequences{micro}",
        f"rows: {shapes} tokens ({config.data.packing}), up to {plan.slots} sequences a row, "
        f"{100 * (1 - plan.efficiency):.1f} % padding",
    ):
        cli.say(line)


def _train_batch(
    config: Config, examples: Examples, plan: Plan, step: int
) -> tuple[Batch, dict[str, int]]:
    from flaxbert.data.batches import count_batch, train_batch

    seed, size = seed_for(config, "data"), config.train.batch_size
    batch = train_batch(examples, plan, batch_size=size, seed=seed, step=step)
    return batch, count_batch(batch)


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
