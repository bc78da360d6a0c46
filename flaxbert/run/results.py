"""What leaves a run: model/ with the best weights, and the result files.

The surprising thing: model/ may be newer than the last checkpoint. The one that the checkpoint
speaks of is kept beside it, so that a resume can always go back to what its run.json names.
"""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import Any

from jax.sharding import Mesh

from flaxbert.config import Config
from flaxbert.errors import StorageError
from flaxbert.hosts.group import SingleProcess
from flaxbert.loop.cadence import Cadence
from flaxbert.loop.control import Hooks
from flaxbert.loop.mesh import on_host
from flaxbert.loop.progress import Progress
from flaxbert.model.heads import Params
from flaxbert.run.inputs import Prepared
from flaxbert.run.result_names import named_for, train_results
from flaxbert.shell.console import say
from flaxbert.storage.store import WEIGHTS, store_for
from flaxbert.storage.workdir import Workdir, write_json
from flaxbert.weights.card import model_card
from flaxbert.weights.folder import write_model


def export_model(
    workdir: Workdir,
    config: Config,
    prepared: Prepared,
    facts: dict[str, Any],
    mesh: Mesh,
    group: SingleProcess,
    params: Params,
    step: int,
    results: dict[str, Any],
    committed: bool,
) -> str:
    """Writes model/ whole, beside it first, then switched; returns the weights' SHA-256.

    All processes of a run call it, for each may hold a part of the parameters; the first writes.
    """
    params = on_host(mesh, params, wanted=group.is_first)
    return group.on_first(
        lambda: _write_model(workdir, config, prepared, facts, params, step, results, committed)
    )


def _write_model(
    workdir: Workdir,
    config: Config,
    prepared: Prepared,
    facts: dict[str, Any],
    params: Params,
    step: int,
    results: dict[str, Any],
    committed: bool,
) -> str:
    staged = workdir.store.stage(workdir.model)
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
    write_model(
        staged,
        prepared.bert,
        params,
        prepared.tokenizer_files,
        card=model_card(prepared.bert, told, results),
    )
    digest = _digest_of(staged)
    workdir.store.replace_directory(staged, workdir.model, committed=committed)
    return digest


def _with_revision(name: str, revision: str) -> str:
    return f"{name} at {revision}" if revision and revision != name else name


def _data_name(config: Config) -> str:
    data = config.data
    return data.dataset if data.task == "text" and data.dataset else data.task


def restore_model(workdir: Workdir, progress: Progress) -> dict[str, Any]:
    """Makes model/ the best model that the checkpoint knows; returns the progress as plain values.

    It may be a later one: exported, and then the process died before a checkpoint named it. Where
    the replay is bit-identical it comes again, on other devices perhaps not.
    """
    best = progress.best
    if best is None or workdir.store.choose_directory(
        workdir.model, lambda folder: _digest_of(folder) == best["weights"]
    ):
        return dataclasses.asdict(progress)
    say(
        f"WARNING: {workdir.model} is not the best model, of update {best['step']}, any more; the "
        "next evaluation counts as best"
    )
    progress.best = None
    return dataclasses.asdict(progress)


def drop_previous(workdir: Workdir) -> None:
    """Deletes the model that was kept beside model/; what cannot be costs room and nothing else."""
    try:
        workdir.store.forget_previous(workdir.model)
    except (OSError, StorageError) as error:
        say(f"WARNING: the model before {workdir.model} could not be deleted: {error}")


def _digest_of(folder: PurePath) -> str:
    """Returns the SHA-256 of the weights in a model folder, "" if there are none."""
    store, path = store_for(folder), folder / WEIGHTS
    return store.sha256(path) if store.is_file(path) else ""


def write_results(
    workdir: Workdir,
    prepared: Prepared,
    progress: Progress,
    cadence: Cadence,
    hooks: Hooks,
    params: Params,
    group: SingleProcess,
) -> None:
    """Writes train_results.json, eval_results.json and, last of all, all_results.json.

    All processes of a run call it, for the model may have to leave; the first one writes.
    """
    if progress.best is None:
        hooks.export(params, progress.step, {}, True)
    if group.is_first:
        _write_results(workdir, prepared, progress, cadence)


def _write_results(
    workdir: Workdir, prepared: Prepared, progress: Progress, cadence: Cadence
) -> None:
    train = train_results(progress, len(prepared.train), cadence.epoch(progress.step))
    evaluated: dict[str, Any] = {}
    write_json(workdir.results("train"), train)
    if progress.best is not None:
        evaluated = named_for("validation", progress.best["results"])
        say(
            f"best: {cadence.best_metric} {progress.best['value']:.4f} after update "
            f"{progress.best['step']}"
        )
    else:
        why = "no validation data"
        if progress.results is not None:
            why = f"{cadence.best_metric} was never finite"
            evaluated = named_for("validation", progress.results)
        say(f"{why}: model/ holds the weights after the last update")
    if evaluated:
        write_json(workdir.results("validation"), evaluated)
    drop_previous(workdir)
    # The epoch is that of the end; when the best model was reached stands in eval_results.json.
    merged = {name: v for name, v in evaluated.items() if name != "step"} | train
    write_json(workdir.all_results, merged)
    say(
        f"done: {train['train_samples_per_second']:.1f} sequences/s in training, "
        f"{progress.wall_seconds:.0f} s in the loop; {progress.least_grace}; model in "
        f"{workdir.model}"
    )
