"""A run's folder: who writes to it, what its checkpoints are worth, and what a resume would do.

Note: a run may be going on in it. Nothing is written, set aside or locked, and what vanishes while
it is looked at was the run's to delete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxbert.config import Config, make_config
from flaxbert.diagnose.findings import FAILURE, OK, WARNING, Finding
from flaxbert.errors import FlaxbertError, ModelFileError, StorageError
from flaxbert.storage import lease, lock
from flaxbert.storage.interface import TEMPORARY, WEIGHTS
from flaxbert.storage.valid_checkpoints import (
    FROZEN,
    Examined,
    examine,
    read_run,
    verify_frozen,
)
from flaxbert.storage.workdir import Workdir, existing_workdir, read_json

SUBJECT = "workdir"
_NO_COPY = "Bring one back from a copy, or start again in another workdir."


def check(path: str) -> Iterator[Finding]:
    """Yields what is to be known about the run in a folder."""
    try:
        workdir = existing_workdir(path)
        config = make_config(read_json(workdir.config))
    except FlaxbertError as error:
        yield Finding(SUBJECT, FAILURE, str(error), code=error.exit_code)
        return
    yield Finding(SUBJECT, OK, f"{workdir.root}: config.json is that of a run")
    yield _lock(workdir.lock) if isinstance(workdir.lock, Path) else _lease(workdir)
    examined = examine(workdir.checkpoints)
    for checkpoint in examined:
        yield _checkpoint(checkpoint)
    yield from _left_over(workdir)
    valid = [checkpoint.step for checkpoint in examined if not checkpoint.damage]
    yield _resume(workdir, config, valid, [c.step for c in examined if c.damage])
    run: dict[str, Any] = {}
    if valid:
        try:
            run = read_run(workdir.checkpoints, valid[-1])
            if FROZEN in run:
                verify_frozen(workdir.checkpoints, valid[-1])
        except ModelFileError as error:
            yield Finding(SUBJECT, FAILURE, str(error), _NO_COPY, code=4)
    if valid:
        yield from _model(workdir, run)
    yield _metrics(workdir, run.get("step", 0))


def _lock(path: Path) -> Finding:
    try:
        who = lock.holder(path)
    except OSError as error:
        return _untold(error)
    return _used_by(who)


def _lease(workdir: Workdir) -> Finding:
    try:
        holder = lease.holder_in(workdir.store.read(workdir.lock))
    except FileNotFoundError:
        return _used_by(None)
    except StorageError as error:
        return _untold(error)
    who = lease.name_of(holder)
    said = f"{who} has its lease, renewed at {holder.get('renewed', '?')}"
    advice = f"If that is over, the next start waits {lease.SECONDS:.0f} s and takes it over."
    return Finding(SUBJECT, OK, said, advice, facts={"in_use": None, "holder": who})


def _used_by(who: str | None) -> Finding:
    said = f"in use by {who}" if who else "nobody writes to it"
    return Finding(SUBJECT, OK, said, facts={"in_use": who is not None})


def _untold(error: Exception) -> Finding:
    said = f"whether it is in use cannot be told from here ({error})"
    return Finding(SUBJECT, OK, said, facts={"in_use": None})


def _checkpoint(checkpoint: Examined) -> Finding:
    facts = {"step": checkpoint.step, "size": checkpoint.size, "seconds": checkpoint.seconds}
    name = f"checkpoint {checkpoint.step}"
    if checkpoint.damage:
        advice = "A resume sets it aside and goes on from an older one."
        said = f"{name} is damaged: {checkpoint.damage}"
        return Finding(SUBJECT, FAILURE, said, advice, code=4, facts=facts)
    said = f"{name} is valid ({checkpoint.size / 1e6:.1f} MB, {checkpoint.seconds:.1f} s)"
    return Finding(SUBJECT, OK, said, facts=facts)


def _left_over(workdir: Workdir) -> Iterator[Finding]:
    names = [*workdir.store.names(workdir.root), *_checkpoint_names(workdir)]
    litter = [name for name in names if name.endswith(TEMPORARY)]
    if litter:
        said = f"kept beside, being written, or left by a kill: {', '.join(litter)}"
        yield Finding(SUBJECT, OK, said, "The next start clears up what is left.")
    for name in _set_aside(workdir):
        said = f"{workdir.checkpoints / name} was set aside"
        yield Finding(SUBJECT, WARNING, said, "Delete it when it is of no more use.")


def _set_aside(workdir: Workdir) -> list[str]:
    return [name for name in _checkpoint_names(workdir) if name.startswith("damaged-")]


def _checkpoint_names(workdir: Workdir) -> list[str]:
    store, folder = workdir.store, workdir.checkpoints
    return store.names(folder) if store.is_directory(folder) else []


def _resume(workdir: Workdir, config: Config, valid: list[int], damaged: list[int]) -> Finding:
    if workdir.finished:
        return Finding(SUBJECT, OK, "the run is finished: the same command exits 0 at once")
    if valid:
        total = _total(workdir, config)
        of = f" of {total}" if total else ""
        said = f"the same command goes on after update {valid[-1]}{of}"
        return Finding(SUBJECT, OK, said, facts={"step": valid[-1], "total": total})
    if damaged or _set_aside(workdir):
        said = "no checkpoint is valid: the same command ends with exit code 4"
        return Finding(SUBJECT, FAILURE, said, _NO_COPY, code=4)
    return Finding(SUBJECT, OK, "no checkpoint yet: the same command starts from the beginning")


def _total(workdir: Workdir, config: Config) -> int:
    """Returns the updates of the run, 0 where its data report does not say how many rows it has."""
    if config.train.steps:
        return config.train.steps
    try:
        rows = read_json(workdir.data_report)["training"]["rows"]
        return math.ceil(-(-rows // config.train.batch_size) * config.train.epochs)
    except (FlaxbertError, KeyError, TypeError):
        return 0


def _model(workdir: Workdir, run: dict[str, Any]) -> Iterator[Finding]:
    """Compares model/ with the best model that the newest checkpoint names."""
    best = run.get("best")
    if not isinstance(best, dict):
        return  # no validation yet, or none at all
    weights = workdir.model / WEIGHTS
    actual = workdir.store.sha256(weights) if workdir.store.is_file(weights) else ""
    if actual == best.get("weights"):
        yield Finding(SUBJECT, OK, f"model/ is the best model, of update {best.get('step')}")
        return
    said = f"model/ is not the best model that the newest checkpoint names (update {best['step']})"
    advice = "A newer best was exported after the checkpoint: a resume puts it right."
    if not _kept(workdir, best.get("weights")):
        advice = "It cannot be brought back: at the next start the next evaluation counts as best."
    yield Finding(SUBJECT, WARNING, said, advice)


def _kept(workdir: Workdir, digest: Any) -> bool:
    """Whether a model folder that was kept beside model/ is the one asked for."""
    store = workdir.store
    for name in store.names(workdir.root):
        weights = workdir.root / name / WEIGHTS
        if name.startswith("model.") and store.is_file(weights) and store.sha256(weights) == digest:
            return True
    return False


def _metrics(workdir: Workdir, step: int) -> Finding:
    if not workdir.store.is_file(workdir.metrics):
        return Finding(SUBJECT, OK, "metrics.jsonl: none yet")
    lines = broken = last = later = 0
    text = workdir.store.read(workdir.metrics).decode("utf-8", "replace")
    for line in text.splitlines():
        lines += 1
        try:
            last = int(json.loads(line)["step"])
            later += last > step
        except (ValueError, KeyError, TypeError, RecursionError):
            broken += 1
    said = f"metrics.jsonl: {lines} lines, the last of update {last}"
    if later and not workdir.finished:
        said += f"; a resume cuts the {later} lines after update {step}, which come again"
    if broken > (not text.endswith("\n")):  # the last line of a killed run may be half of one
        advice = "The other lines are read as they are."
        return Finding(SUBJECT, WARNING, f"{said}; {broken} are no metrics", advice)
    return Finding(SUBJECT, OK, said)
