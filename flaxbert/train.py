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
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from flaxbert.config import Config
from flaxbert.run import consistency, identity
from flaxbert.shell import cli

if TYPE_CHECKING:
    # Imported where they are used: JAX and transformers take seconds, flags and errors should not.
    from flaxbert.hosts.group import SingleProcess
    from flaxbert.loop.progress import Progress
    from flaxbert.loop.step import State
    from flaxbert.run.one_run import Run
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
        train(config, workdir, group, stop)


def train(config: Config, workdir: Workdir, group: SingleProcess, stop: cli.StopSignal) -> None:
    """Starts or resumes the run of `config` in an open, locked workdir."""
    begun = time.perf_counter()
    started, finished = group.on_first(lambda: identity.look_at(workdir, config))
    if finished:
        cli.say(f"{workdir.root}: this run is finished. Its model is in {workdir.model}.")
        return

    from flaxbert.loop import control
    from flaxbert.loop.mesh import make_mesh
    from flaxbert.methods import params_of
    from flaxbert.run.inputs import read_inputs_together
    from flaxbert.run.one_run import Run
    from flaxbert.run.results import Exporter, write_results
    from flaxbert.run.shapes import resolve_dtype
    from flaxbert.run.training import Training
    from flaxbert.storage import compiled
    from flaxbert.storage.checkpoint import Checkpoints
    from flaxbert.track import Trackers, open_trackers

    compiled.keep(several=group.count > 1)
    checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint.keep, group)
    record: dict[str, Any] = {}  # run.json of the checkpoint to go on from
    if started:
        record = group.on_first(lambda: identity.newest_record(workdir, checkpoints))

    # Model files and data, then the devices: the mesh, rows per update, number of updates.
    inputs = read_inputs_together(config, workdir, group, record)
    dtype = record.get("dtype") or resolve_dtype(config.model.dtype)
    facts = group.on_first(lambda: identity.run_facts(config, workdir, inputs, dtype, record))
    mesh = make_mesh(config.mesh, inputs.bert)
    consistency.check_collectives(group)
    run = Run.plan(config, inputs, mesh, dtype, group)

    # State: from the newest valid checkpoint, else from the pretrained weights.
    if record:
        state, progress = _restored(run, workdir, checkpoints, record)
    else:
        state, progress = _fresh(run)
        facts = group.on_first(lambda: identity.start_workdir(config, workdir, inputs, facts))
    run.announce(state)

    training = Training.compile(
        run,
        state,
        export=Exporter(run, workdir, facts),
        facts=facts,
        started=begun,
        stop=stop,
        saving=lambda: checkpoints.under_way,
    )
    trackers = Trackers()
    if group.is_first:
        done = {"step": progress.step, "evaluated": progress.evaluated}
        trackers = open_trackers(config, workdir, total=training.cadence.total, **done)
    with (
        stop.deferred(lambda asked: any(group.all_gather(asked))),
        _closing(checkpoints, after_errors=group.count == 1),
        _closing(trackers),
    ):
        consistency.begin_training(group, stop)
        state = control.train(training, state, progress, checkpoints, trackers)
    write_results(training.run, training.export, progress, params_of(state))


def _fresh(run: Run) -> tuple[State, Progress]:
    """Returns the state of the pretrained weights."""
    from flaxbert.loop.progress import Progress
    from flaxbert.loop.step import init_state

    params = run.inputs.start.load_params(run.inputs.bert)
    consistency.check_params(params, run.group)
    return init_state(params, run.mesh, run.optimizer, run.method), Progress()


def _restored(
    run: Run, workdir: Workdir, checkpoints: Checkpoints, record: dict[str, Any]
) -> tuple[State, Progress]:
    """Returns the state and the progress of the checkpoint that `record` describes."""
    from flaxbert.heads import abstract_params
    from flaxbert.loop.progress import Progress
    from flaxbert.loop.step import abstract_state
    from flaxbert.run.results import restore_model

    progress = Progress.from_dict(record)
    params = abstract_params(run.inputs.bert)
    wanted = abstract_state(params, run.mesh, run.optimizer, run.method)
    state = checkpoints.restore(progress.step, wanted)
    progress.best = run.group.on_first(lambda: restore_model(workdir, progress))
    cli.say(f"resuming {workdir.root} after update {progress.step} of {run.shapes.total}")
    return state, progress


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


def command() -> None:
    """Runs `python -m flaxbert.train` on sys.argv."""
    cli.run(main, define_flags, __doc__, processes="together")


if __name__ == "__main__":
    command()
