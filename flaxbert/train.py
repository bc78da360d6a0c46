"""python -m flaxbert.train --config=FILE.py[:ARG] [--workdir=DIR] [--config.x.y=VALUE ...]

Fine-tunes a BERT checkpoint. The same command again resumes; a finished run exits 0 at once.
`train` below is a run from top to bottom: read model and data, plan the shapes, restore or start
the state, compile, train, write the results.
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
    # Imported where they are used: JAX takes seconds, flag errors should appear at once.
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
    started, finished, moved = group.on_first(lambda: identity.look_at(workdir, config))
    said = f"{workdir.root}: this run is finished. Its model is in {workdir.model}."
    if finished and not moved:
        cli.say(said)
        return

    from flaxbert.methods import params_of
    from flaxbert.run import control, inputs, one_run, results, shapes, training
    from flaxbert.storage import checkpoint, compiled
    from flaxbert.track import Trackers, open_trackers

    compiled.keep(several=group.count > 1)
    checkpoints = checkpoint.Checkpoints(workdir.checkpoints, config.checkpoint.keep, group)
    record: dict[str, Any] = {}  # run.json of the checkpoint to resume from
    if started:
        record = group.on_first(lambda: identity.newest_record(workdir, checkpoints))

    # Read and check model files and data; plan the mesh, the rows and the number of updates.
    read = inputs.read_inputs_together(config, workdir, group, record)
    dtype = record.get("dtype") or shapes.resolve_dtype(config.model.dtype)
    facts = group.on_first(lambda: identity.run_facts(config, workdir, read, dtype, record))
    if moved and record:
        group.on_first(lambda: identity.keep_paths(config, workdir))
    if finished:
        cli.say(said)
        return
    run = one_run.Run.plan_here(config, read, group, dtype)

    # Restore the state from the newest valid checkpoint, else start from the pretrained weights.
    if record:
        state, progress = _restored(run, workdir, checkpoints, record)
    else:
        state, progress = _fresh(run)
        facts = group.on_first(lambda: identity.start_workdir(config, workdir, read, facts))
    run.announce(state)

    # Compile every shape, train, write the results.
    ready = training.Training.compile(
        run,
        state,
        export=results.Exporter(run, workdir, facts),
        started=begun,
        stop=stop,
        saving=lambda: checkpoints.under_way,
    )
    trackers = Trackers()
    if group.is_first:
        done = {"step": progress.step, "evaluated": progress.evaluated}
        trackers = open_trackers(config, workdir, total=run.shapes.total, **done)
    with (
        stop.deferred(lambda asked: any(group.all_gather(asked))),
        _closing(checkpoints, after_errors=group.count == 1),
        _closing(trackers),
    ):
        consistency.begin_training(group, stop)
        state = control.train(ready, state, progress, checkpoints, trackers)
    results.write_results(ready.export, progress, params_of(state))


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
    """Closes `resource` at the end; an error in closing does not replace one from the block."""
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
