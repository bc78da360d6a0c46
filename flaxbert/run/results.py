"""The output of a run: model/ with the best weights, and the result files.

Note: model/ may be newer than the last checkpoint. The model that the checkpoint names is kept
beside it, so that a resume can always go back to it.
"""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import Any

from flaxbert.config import Config
from flaxbert.data.tokenizer_files import write_files
from flaxbert.errors import StorageError
from flaxbert.loop.mesh import on_host
from flaxbert.loop.progress import Progress
from flaxbert.model.binding import Params
from flaxbert.run.one_run import Run
from flaxbert.run.result_names import named_for, train_results
from flaxbert.shell.console import say
from flaxbert.storage.interface import WEIGHTS
from flaxbert.storage.store import store_for
from flaxbert.storage.workdir import Workdir, write_json
from flaxbert.weights.card import model_card
from flaxbert.weights.folder import write_model


@dataclasses.dataclass(frozen=True)
class Exporter:
    """Writes model/ of a run."""

    run: Run
    workdir: Workdir
    facts: dict[str, Any]  # what run.json records

    def __call__(self, params: Params, step: int, results: dict[str, Any], committed: bool) -> str:
        """Replaces model/ as a whole; returns the SHA-256 of the weights.

        All processes of a run call it, as each may hold a part of the parameters; the first one
        writes. `committed`: whether the current model/ is the one that a checkpoint names.
        """
        group = self.run.group
        host = on_host(self.run.mesh, params, wanted=group.is_first)
        return group.on_first(lambda: self._write(host, step, results, committed))

    def _write(self, params: Params, step: int, results: dict[str, Any], committed: bool) -> str:
        config, inputs, facts = self.run.config, self.run.inputs, self.facts
        staged = self.workdir.store.stage(self.workdir.model)
        told = {
            "started from": _with_revision(facts["model"], facts["model_revision"]),
            "data": _with_revision(_data_name(config), facts["dataset_revision"]),
            "updates": step,
            "sequences per update": config.train.batch_size,
            "peak learning rate": config.optim.learning_rate,
            "seed": config.seed,
            "compute dtype": facts["dtype"],
            **facts["versions"],
        }
        write_model(staged, inputs.bert, params, (), card=model_card(inputs.bert, told, results))
        write_files(inputs.tokenizer_files, staged)
        digest = _digest_of(staged)
        self.workdir.store.replace_directory(staged, self.workdir.model, committed=committed)
        return digest


def _with_revision(name: str, revision: str) -> str:
    return f"{name} at {revision}" if revision and revision != name else name


def _data_name(config: Config) -> str:
    data = config.data
    return data.dataset if data.task == "text" and data.dataset else data.task


def restore_model(workdir: Workdir, progress: Progress) -> dict[str, Any] | None:
    """Puts the checkpoint's best model back into model/; returns its record, None if it is gone.

    model/ may hold a later one, exported before the process died without a checkpoint. The replay
    exports it again if it is bit-identical; on other devices it may not be.
    """
    best = progress.best
    if best is None or workdir.store.choose_directory(
        workdir.model, lambda folder: _digest_of(folder) == best["weights"]
    ):
        return best
    say(
        f"WARNING: {workdir.model} is no longer the best model, that of update {best['step']}; the "
        "next evaluation counts as best"
    )
    return None


def drop_previous(workdir: Workdir) -> None:
    """Deletes the model that was kept beside model/; a failure is only a warning."""
    try:
        workdir.store.forget_previous(workdir.model)
    except (OSError, StorageError) as error:
        say(f"WARNING: the model before {workdir.model} could not be deleted: {error}")


def _digest_of(folder: PurePath) -> str:
    """Returns the SHA-256 of the weights in a model folder, "" if there are none."""
    store, path = store_for(folder), folder / WEIGHTS
    return store.sha256(path) if store.is_file(path) else ""


def write_results(export: Exporter, progress: Progress, params: Params) -> None:
    """Writes train_results.json, eval_results.json and, last of all, all_results.json.

    All processes of a run call it, as the model may still have to be exported; the first writes.
    """
    if progress.best is None:
        export(params, progress.step, {}, True)
    if export.run.group.is_first:
        _write_results(export.run, export.workdir, progress)


def _write_results(run: Run, workdir: Workdir, progress: Progress) -> None:
    best_metric = run.inputs.best_metric
    epoch = run.cadence.epoch(progress.step)
    train = train_results(progress, len(run.inputs.train), epoch)
    evaluated: dict[str, Any] = {}
    write_json(workdir.results("train"), train)
    if progress.best is not None:
        evaluated = named_for("validation", progress.best["results"])
        say(
            f"best: {best_metric} {progress.best['value']:.4f} after update {progress.best['step']}"
        )
    else:
        why = "no validation data"
        if progress.results is not None:
            why = f"{best_metric} was never finite"
            evaluated = named_for("validation", progress.results)
        say(f"{why}: model/ has the weights after the last update")
    if evaluated:
        write_json(workdir.results("validation"), evaluated)
    drop_previous(workdir)
    # The epoch is that of the end; eval_results.json has that of the best model.
    merged = {name: v for name, v in evaluated.items() if name != "step"} | train
    write_json(workdir.all_results, merged)
    say(
        f"done: {train['train_samples_per_second']:.1f} sequences/s in training, "
        f"{progress.wall_seconds:.0f} s in the loop; {progress.grace_period}; model in "
        f"{workdir.model}"
    )
