"""Finds the checkpoints of a run, and which of them are valid: their files match the manifest.

Note: a disk that cannot be read for the moment ends the start with an error. To take the checkpoint
for damaged would throw training away.
"""

from __future__ import annotations

import dataclasses
import errno
import time
from pathlib import PurePath
from typing import Any

from flaxbert.errors import ModelFileError
from flaxbert.shell.console import say
from flaxbert.storage.interface import MANIFEST, DamagedError, is_step
from flaxbert.storage.manifest import verify_manifest
from flaxbert.storage.store import store_for
from flaxbert.storage.workdir import read_json

# In each checkpoint, beside the manifest
STATE, RUN = "state", "run.json"
# Beside the checkpoints, once for all of them: parameters that are not trained
FROZEN = "frozen"

# Error numbers of damaged or missing files. Any other error (no permission, no memory, no handle
# left, a server that does not answer) may be gone a minute later.
_DAMAGE = {
    errno.EIO,
    errno.EILSEQ,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    *(getattr(errno, name, errno.EIO) for name in ("EBADMSG", "ENODATA", "EREMOTEIO", "EUCLEAN")),
}


@dataclasses.dataclass(frozen=True)
class Examined:
    """A checkpoint, compared with its manifest."""

    step: int
    size: int  # bytes
    damage: str  # "" = valid
    seconds: float  # that reading it took


def examine(directory: PurePath) -> list[Examined]:
    """Verifies every checkpoint of a run, oldest first; changes nothing and takes no lock.

    A checkpoint that the run deletes meanwhile is left out.
    """
    store = store_for(directory)
    if not store.is_directory(directory):
        return []
    found = []
    for step in steps_in(directory):
        path, start = directory / str(step), time.perf_counter()
        damage, size = "", 0
        try:
            size = sum(store.sizes(path).values())
            verify_manifest(path)
        except (DamagedError, OSError) as error:
            damage = str(error)
            if not store.is_committed(path):
                continue
        found.append(Examined(step, size, damage, time.perf_counter() - start))
    return found


def read_run(directory: PurePath, step: int) -> dict[str, Any]:
    """Returns what a run recorded about itself in its checkpoint at `step`."""
    return read_json(directory / str(step) / RUN)


def steps_in(directory: PurePath) -> list[int]:
    """Returns the steps of the checkpoints in a run's `checkpoints/`, oldest first."""
    return sorted(int(name) for name in store_for(directory).names(directory) if is_step(name))


def newest_valid(directory: PurePath) -> int | None:
    """Returns the newest step whose manifest verifies, or None if there never was a checkpoint.

    Sets damaged checkpoints aside as `damaged-<step>`, with a line on stderr.

    Raises:
      ModelFileError: there are checkpoints but none is valid, so training does not silently start
        again; or one cannot be read for now, which does not make it damaged.
    """
    names = store_for(directory).names(directory)
    damaged = [name for name in names if name.startswith("damaged-")]
    for step in reversed(steps_in(directory)):
        try:
            verify_manifest(directory / str(step))
            run = read_run(directory, step)
            held = run.get("step", step) if isinstance(run, dict) else None
            if held != step:  # a copy of another checkpoint
                raise DamagedError(f"it holds the state after update {held}")
            return step
        except (DamagedError, OSError) as error:
            if passing := _passing(error):
                raise ModelFileError(
                    f"{passing.filename or directory / str(step)}: cannot be read: "
                    f"{passing.strerror}. Nothing was changed; once that is fixed run the same "
                    "command again."
                ) from error
            damaged.append(f"damaged-{step}")
            target = directory / damaged[-1]
            store_for(directory).set_aside(directory / str(step), target)
            say(
                f"flaxbert: WARNING: checkpoint {step} is damaged ({error}); kept as {target}, "
                "using an older one"
            )
    if damaged:
        raise ModelFileError(
            f"{directory}: no checkpoint is valid ({', '.join(sorted(damaged))}). Restore one from "
            "a copy, or start again in another workdir."
        )
    return None


def verify_frozen(directory: PurePath, step: int) -> str:
    """Returns the digest of the frozen part of a run's checkpoints.

    Raises ModelFileError if it is damaged, or not the one of checkpoint `step`.
    """
    path = directory / FROZEN
    try:
        verify_manifest(path)
        digest = store_for(path).sha256(path / MANIFEST)
        if digest != read_run(directory, step).get(FROZEN):
            raise DamagedError(f"it is not the one of checkpoint {step}")
    except (DamagedError, OSError) as error:
        raise ModelFileError(
            f"{path}: the parameters that are not trained cannot be used: {error}. Restore them "
            "from a copy, or start again in another workdir."
        ) from error
    return digest


def _passing(error: Exception) -> OSError | None:
    """Returns the disk's error if it may pass and does not mean that the checkpoint is damaged."""
    cause = error.__cause__ if isinstance(error, ModelFileError) else error
    if not isinstance(cause, OSError) or cause.errno is None or cause.errno in _DAMAGE:
        return None
    return cause
