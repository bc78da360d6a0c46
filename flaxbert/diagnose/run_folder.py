"""A run's folder: who writes to it, whether its checkpoints are valid, what a resume would do.

Note: a run may be active. Nothing is written, set aside or locked, and files that the run deletes
meanwhile are no error.
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
_NO_COPY = "Restore one from a copy, or start again in another workdir."


def check(path: str) -> Iterator[Finding]:
    """Yields the findings about the run in a folder."""
    try:
        workdir = existing_workdir(path)
        config = make_config(read_json(workdir.config))
    except FlaxbertError as error:
        yield Finding(SUBJECT, FAILURE, str(error), code=error.exit_code)
        return
    yield Finding(SUBJECT, OK, f"{workdir.root}: config.json is that of a run")
    yield _writer(workdir)
    examined = examine(workdir.checkpoints)
    for checkpoint in examined:
        yield _checkpoint(checkpoint)
    store, folder = workdir.store, workdir.checkpoints
    names = store.names(folder) if store.is_directory(folder) else []
    yield from _left_over(workdir, names)
    valid = [checkpoint.step for checkpoint in examined if not checkpoint.damage]
    had_some = len(examined) > len(valid) or any(map(_is_set_aside, names))
    yield _resume(workdir, config, valid, had_some)
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


def _writer(workdir: Workdir) -> Finding:
    """Returns who writes to the run, from its lock on disk or its lease in a bucket."""
    try:
        if isinstance(workdir.lock, Path):
            who = lock.holder(workdir.lock)
            said = f"in use by {who}" if who else "no process writes to it"
            return Finding(SUBJECT, OK, said, facts={"in_use": who is not None})
        holder = lease.holder_in(workdir.store.read(workdir.lock))
    except (OSError, StorageError) as error:
        no_lease = isinstance(error, FileNotFoundError) and not isinstance(workdir.lock, Path)
        said = "no process writes to it"
        said = said if no_lease else f"whether it is in use is unknown ({error})"
        return Finding(SUBJECT, OK, said, facts={"in_use": False if no_lease else None})
    who = lease.name_of(holder)
    said = f"{who} has its lease, renewed at {holder.get('renewed', '?')}"
    advice = (
        f"If that process has ended, the next start waits {lease.SECONDS:.0f} s, then takes over."
    )
    return Finding(SUBJECT, OK, said, advice, facts={"in_use": None, "holder": who})


def _checkpoint(checkpoint: Examined) -> Finding:
    facts = {"step": checkpoint.step, "size": checkpoint.size, "seconds": checkpoint.seconds}
    name = f"checkpoint {checkpoint.step}"
    if checkpoint.damage:
        advice = "A resume sets it aside and uses an older one."
        said = f"{name} is damaged: {checkpoint.damage}"
        return Finding(SUBJECT, FAILURE, said, advice, code=4, facts=facts)
    said = f"{name} is valid ({checkpoint.size / 1e6:.1f} MB, {checkpoint.seconds:.1f} s)"
    return Finding(SUBJECT, OK, said, facts=facts)


def _left_over(workdir: Workdir, checkpoints: list[str]) -> Iterator[Finding]:
    names = [*workdir.store.names(workdir.root), *checkpoints]
    temporary = [name for name in names if name.endswith(TEMPORARY)]
    if temporary:
        said = f"backups, files being written, or left by a kill: {', '.join(temporary)}"
        yield Finding(SUBJECT, OK, said, "The next start removes what is not needed.")
    for name in filter(_is_set_aside, checkpoints):
        said = f"{workdir.checkpoints / name} was set aside"
        yield Finding(SUBJECT, WARNING, said, "Delete it when you no longer need it.")


def _is_set_aside(name: str) -> bool:
    return name.startswith("damaged-")


def _resume(workdir: Workdir, config: Config, valid: list[int], had_some: bool) -> Finding:
    if workdir.finished:
        return Finding(SUBJECT, OK, "the run is finished: the same command exits 0 at once")
    if valid:
        total = _total(workdir, config)
        of = f" of {total}" if total else ""
        said = f"the same command resumes after update {valid[-1]}{of}"
        return Finding(SUBJECT, OK, said, facts={"step": valid[-1], "total": total})
    if had_some:
        said = "no checkpoint is valid: the same command ends with exit code 4"
        return Finding(SUBJECT, FAILURE, said, _NO_COPY, code=4)
    return Finding(SUBJECT, OK, "no checkpoint yet: the same command starts from the beginning")


def _total(workdir: Workdir, config: Config) -> int:
    """Returns the updates of the run; 0 if its data report does not say how many rows it has."""
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
    advice = "A newer best model was exported after the checkpoint: a resume restores the old one."
    if not _kept(workdir, best.get("weights")):
        advice = "It cannot be restored: after the next start the next evaluation counts as best."
    yield Finding(SUBJECT, WARNING, said, advice)


def _kept(workdir: Workdir, digest: Any) -> bool:
    """Whether a backup of model/ has these weights."""
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
        said += f"; a resume removes the {later} lines after update {step}, to write them again"
    if broken > (not text.endswith("\n")):  # the last line of a killed run may be half of one
        advice = "The other lines can be used."
        return Finding(SUBJECT, WARNING, f"{said}; {broken} cannot be read", advice)
    return Finding(SUBJECT, OK, said)
