"""python -m flaxbert.train --config=FILE.py[:ARG] [--workdir=DIR] [--config.x.y=VALUE ...]

Fine-tunes a BERT checkpoint. The same command again resumes; a finished run exits 0 at once. This
file tells the story of a run from top to bottom: prepare model and data, plan the shapes, restore
or start the state, train, write the results.
"""

from __future__ import annotations

from flaxbert.shell import signals

if __name__ == "__main__":
    signals.install()  # before the slower imports

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from flaxbert.config import Config, seed_for
from flaxbert.run import consistency, identity
from flaxbert.shell import cli

if TYPE_CHECKING:
    # Imported where they are used: JAX and transformers take seconds, flags and errors should not.
    from jax.sharding import Mesh

    from flaxbert.data.batches import Batch, Examples, Share
    from flaxbert.data.pack import Plan
    from flaxbert.hosts.group import SingleProcess
    from flaxbert.loop.cadence import Cadence
    from flaxbert.loop.progress import Progress
    from flaxbert.loop.step import State
    from flaxbert.model.bert_config import BertConfig
    from flaxbert.run.inputs import Plans, Prepared
    from flaxbert.storage.checkpoint import Checkpoints
    from flaxbert.storage.workdir import Workdir


def define_flags(values: flags.FlagValues) -> None:
    cli.define_config(values)
    flags.DEFINE_string(
        "workdir", "", "Where the run lives; default runs/<config>[-ARG].", flag_values=values
    )


def main(values: flags.FlagValues, stop: cli.StopSignal, group: SingleProcess) -> None:
    config = cli.read_config(values)
    consistency.check_same(config, group)
    group.limit(config.processes.stuck_after)
    path = values.workdir or Path("runs") / cli.config_name(sys.argv[1:])
    with consistency.opened(path, group) as workdir:
        run(config, workdir, group, stop)


def run(config: Config, workdir: Workdir, group: SingleProcess, stop: cli.StopSignal) -> None:
    """Starts or resumes the run of `config` in an open, locked workdir."""
    begun = time.perf_counter()
    started, finished = group.on_first(lambda: _look_at(workdir, config))
    if finished:
        cli.say(f"{workdir.root}: this run is finished. Its model is in {workdir.model}.")
        return

    from flaxbert.heads import task_for
    from flaxbert.loop import control
    from flaxbert.loop.agreement import Agreement
    from flaxbert.loop.flops import Utilisation, peak_of
    from flaxbert.loop.forward import make_forward
    from flaxbert.loop.mesh import make_mesh
    from flaxbert.optim.adamw import make_schedule
    from flaxbert.run.compile import compile_evaluation, compile_update, share_of, train_step_of
    from flaxbert.run.inputs import best_metric_of, plan, prepare_together
    from flaxbert.run.results import export_model, write_results
    from flaxbert.storage import compiled
    from flaxbert.storage.checkpoint import Checkpoints
    from flaxbert.track.writer import Silent, Writer

    compiled.keep(several=group.count > 1)
    checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint.keep, group)
    newest, stored = None, {}
    if started:
        newest, stored = group.on_first(lambda: _newest(workdir, checkpoints))

    # Model files and data: what is known before a device is asked.
    prepared = prepare_together(
        config,
        workdir,
        group,
        resumed=newest is not None,
        dataset_revision=stored.get("dataset_revision", ""),
    )
    bert, task = prepared.bert, task_for(prepared.labels.problem)
    best_metric = best_metric_of(config, prepared)
    facts = group.on_first(lambda: _facts(config, workdir, prepared, stored))

    # Shapes: the mesh, rows per update, number of updates.
    mesh = make_mesh(config.mesh, bert)
    consistency.check_collectives(group)
    plans = plan(config, prepared, mesh, config.train.accumulate or 1)

    # State: from the newest valid checkpoint, else from the pretrained weights.
    if newest is None:
        state, progress = _fresh_state(prepared, mesh, group)
        facts = group.on_first(lambda: identity.start_workdir(config, workdir, prepared, facts))
    else:
        state, progress = _stored_state(workdir, checkpoints, newest, stored, bert, mesh, group)
        cli.say(f"resuming {workdir.root} after update {newest} of {plans.total}")

    learning_rate = make_schedule(config.optim, plans.total)
    several = group.count > 1
    agreement = (
        Agreement(mesh, lambda: stop.requested, lambda: checkpoints.under_way) if several else None
    )
    step = train_step_of(config, prepared, plans, mesh, state, facts["dtype"], agreeing=several)
    _announce(config, prepared, plans, mesh, facts["dtype"], state)
    plans, update = compile_update(step, state, config, prepared, plans, mesh, group, agreement)
    forward = make_forward(bert, mesh=mesh, dtype=facts["dtype"])
    check = agreement.check if agreement else stop.check
    hooks = control.Hooks(
        batch=functools.partial(_train_batch, config, prepared.train, plans.train, share_of(mesh)),
        update=update,
        learning_rate=lambda step: float(learning_rate(step)),
        utilisation=Utilisation(bert, peak_of(mesh, facts["dtype"])).of,
        evaluate=compile_evaluation(
            config, prepared, plans, forward, task, check, state["params"], mesh, group
        ),
        export=functools.partial(export_model, workdir, config, prepared, facts, mesh, group),
        started=begun,
        start_facts=compiled.told,
        run_facts=facts,
        interrupted=lambda: stop.requested and not several,
        several=several,
        beat=group.beat,
    )
    cadence = _cadence(config, plans, best_metric)
    writer = Silent()
    if group.is_first:
        writer = Writer(
            workdir.metrics, step=progress.step, total=plans.total, evaluated=progress.evaluated
        )
    with (
        stop.deferred(lambda asked: any(group.all_gather(asked))),
        _closing(checkpoints, after_errors=not several),
        _closing(writer),
    ):
        consistency.begin_training(group, stop)
        state = control.train(state, progress, cadence, hooks, checkpoints, writer)
    write_results(workdir, prepared, progress, cadence, hooks, state["params"], group)


def _look_at(workdir: Workdir, config: Config) -> tuple[bool, bool]:
    """Returns whether the run has been started, and finished."""
    if not workdir.started:
        return False, False
    identity.check_config(config, workdir)
    return True, workdir.finished


def _newest(workdir: Workdir, checkpoints: Checkpoints) -> tuple[int | None, dict[str, Any]]:
    """Returns the step of the newest valid checkpoint and what it recorded."""
    from flaxbert.loop.run_record import check_recorded

    newest = checkpoints.newest_valid()
    if newest is None:
        return None, {}
    place = workdir.checkpoints / str(newest)
    stored = check_recorded(checkpoints.read_run(newest), place, newest)
    identity.check_source(workdir, stored)
    return newest, stored


def _facts(
    config: Config, workdir: Workdir, prepared: Prepared, stored: dict[str, Any]
) -> dict[str, Any]:
    facts = identity.run_facts(config, prepared, stored)
    identity.check_data(workdir, stored, facts)
    return facts


def _fresh_state(prepared: Prepared, mesh: Mesh, group: SingleProcess) -> tuple[State, Progress]:
    from flaxbert.loop.progress import Progress
    from flaxbert.loop.step import init_state

    params = prepared.start.load_params(prepared.bert)
    consistency.check_params(params, group)
    return init_state(params, mesh), Progress()


def _stored_state(
    workdir: Workdir,
    checkpoints: Checkpoints,
    newest: int,
    stored: dict[str, Any],
    bert: BertConfig,
    mesh: Mesh,
    group: SingleProcess,
) -> tuple[State, Progress]:
    from flaxbert.loop.progress import Progress
    from flaxbert.loop.step import abstract_state
    from flaxbert.model.heads import abstract_params
    from flaxbert.run.results import restore_model

    state = checkpoints.restore(newest, abstract_state(abstract_params(bert), mesh))
    restored = group.on_first(lambda: restore_model(workdir, Progress.from_dict(stored)))
    return state, Progress.from_dict(restored)


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
def _closing(resource: Any, *, after_errors: bool = True) -> Iterator[None]:
    """Closes at the end. What goes wrong in closing ends the run, unless an error already does."""
    try:
        yield
    except BaseException:
        try:
            if after_errors:
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
    config: Config, examples: Examples, plan: Plan, share: Share, step: int
) -> tuple[Batch, dict[str, int]]:
    """Returns this process's rows of an update, and counts of all rows."""
    from flaxbert.data import batches

    which = {"batch_size": config.train.batch_size, "seed": seed_for(config, "data"), "step": step}
    batch = batches.train_batch(examples, plan, **which, share=share)
    computed = batch["sequence_ids"].size * share.of // len(share.blocks)
    return batch, batches.count_update(examples, **which, computed=computed)


def command() -> None:
    """Runs `python -m flaxbert.train` on sys.argv."""
    cli.run(main, define_flags, __doc__, processes="together")


if __name__ == "__main__":
    command()
