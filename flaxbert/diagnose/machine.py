"""The machine around a run: environment variables, and the folders that it writes to.

The surprising thing: whether a folder can be written to, renamed in and locked is tried out, in a
folder of our own that is removed again; but never inside a workdir, which nobody may touch.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flaxbert.diagnose.findings import FAILURE, OK, WARNING, Finding
from flaxbert.storage.embedded import cache_directory
from flaxbert.storage.local import sync_directory

ENVIRONMENT, DISK = "environment", "disk"

_MATTERS = re.compile(
    r"(JAX|XLA|LIBTPU|TPU|HF|NCCL|FLAXBERT|TRANSFORMERS|TOKENIZERS|HUGGING_FACE)_.*|LD_LIBRARY_PATH"
    r"|CUDA_VISIBLE_DEVICES|XDG_CACHE_HOME|TMPDIR|OMP_NUM_THREADS|(?i:https?|all|no)_proxy"
)
_SECRET = re.compile(r"(?i)token|key|secret|password|credential|proxy|auth")
# Variables that change what a run computes, or how fast.
_NOTES = {
    "JAX_ENABLE_X64": "64-bit types change every run and its speed",
    "JAX_DISABLE_JIT": "nothing is compiled: training is many times slower",
    "JAX_DEBUG_NANS": "updates that are not finite end the run instead of being skipped",
    "JAX_NUM_CPU_DEVICES": "simulated devices share the same cores",
}
_OFF = ("", "0", "false", "False")

# Of BERT-base: float32 parameters and two moments in each checkpoint, of which `keep` stay and one
# is under way; and the weights of model/, the one before it and the one that is being written.
_PARAMETERS, _KEEP = 109_483_778, 2
NEEDED = (_KEEP + 1) * 12 * _PARAMETERS + 3 * 4 * _PARAMETERS


def check_environment() -> Iterator[Finding]:
    """Yields the variables that matter; of secrets only that they are set."""
    values = {
        name: "set" if _SECRET.search(name) else value
        for name, value in sorted(os.environ.items())
        # One of them is set by cli.py.
        if _MATTERS.fullmatch(name) and name != "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    }
    said = ", ".join(f"{name}={value}" for name, value in values.items())
    yield Finding(ENVIRONMENT, OK, said or "no variable that matters is set", facts=values)
    for name, note in _NOTES.items():
        if values.get(name, "") not in _OFF:
            said = f"{name} is set: {note}"
            yield Finding(ENVIRONMENT, WARNING, said, f"Unless you mean it: unset {name}")


def check_disk(workdir: Path | None) -> Iterator[Finding]:
    """Yields room and abilities of the folders that a run writes to."""
    hub = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    places = {
        "runs/": Path("runs"),
        "flaxbert's cache": cache_directory(),
        "the hub's cache": Path(hub),
        "temporary files": Path(tempfile.gettempdir()),
    }
    if workdir is not None:
        yield _room("the workdir", workdir, NEEDED)
    for name, path in places.items():
        yield _room(name, path, NEEDED if name == "runs/" else 2**30)
        folder = _existing(path)
        if workdir is None or not folder.resolve().is_relative_to(workdir.resolve()):
            yield from _abilities(name, folder, locks=name == "runs/")


def _room(name: str, path: Path, needed: int) -> Finding:
    free = shutil.disk_usage(_existing(path)).free
    said = f"{free / 1e9:.1f} GB free for {name} ({path.absolute()})"
    facts = {"free": free, "needed": needed}
    if free >= needed:
        return Finding(DISK, OK, said, facts=facts)
    who = f"BERT-base with checkpoint.keep={_KEEP} takes" if needed == NEEDED else "wanted are"
    return Finding(
        DISK,
        WARNING,
        f"{said}: {who} {needed / 1e9:.1f} GB",
        "Free some, name a --workdir on another disk, or lower checkpoint.keep.",
        facts=facts,
    )


def _abilities(name: str, folder: Path, *, locks: bool) -> Iterator[Finding]:
    """Tries to write, sync, rename and, where runs are, lock."""
    step = "written to"
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".flaxbert-doctor-") as own,
            (Path(own) / "a").open("wb") as file,
        ):
            file.write(b"x")
            file.flush()
            step = "synced"
            os.fsync(file.fileno())
            step = "renamed in"
            (Path(own) / "a").replace(Path(own) / "b")
            sync_directory(Path(own))
            if locks:
                step = "locked"
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        said = f"{name} cannot be {step}: {error.strerror} ({folder.absolute()})"
        advice = "Name a folder on a local disk, or repair the permissions."
        yield Finding(DISK, FAILURE, said, advice, code=4)


def _existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
