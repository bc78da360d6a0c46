"""Checks before training that all processes agree: config, workdir, weights, collectives.

The first process alone opens, locks and reads the workdir; an error there ends all others too, with
its exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import flaxbert
from flaxbert.config import Config, flatten, to_dict
from flaxbert.errors import ConfigError, InterruptedRun, ModelFileError, WrongNumbersError
from flaxbert.hosts.group import SingleProcess
from flaxbert.shell.signals import StopSignal

if TYPE_CHECKING:
    from flaxbert.storage.workdir import Workdir

# What compiled programs depend on: it must be the same in all processes.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
_VARIABLES = ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Seconds: a network file system may show a new file a minute late.
_PATIENCE = 70.0
# Faulty sums showed with nearly every exchange of 4 MiB; larger ones only take longer.
_SIZES, _TIMES = (2**10, 2**18, 2**22), 2


def check_same(config: Config, group: SingleProcess) -> None:
    """Raises ConfigError if the processes were started with different configs or libraries."""
    mine = {
        **{f"config.{name}": value for name, value in flatten(to_dict(config)).items()},
        "flaxbert": flaxbert.__version__,
        **{name: version(name) for name in _PACKAGES},
        **{name: _without_dumps(os.environ.get(name, "")) for name in _VARIABLES},
    }
    for process, theirs in enumerate(group.all_gather(mine)):
        for name, value in theirs.items():
            if value != mine[name]:
                raise ConfigError(
                    f"{name} is {mine[name]!r} in process {group.index} and {value!r} in process "
                    f"{process}. Start all with one command, in one environment."
                )


def _without_dumps(flags: str) -> str:
    """Drops the compiler's output folders, which may differ."""
    return " ".join(flag for flag in flags.split() if not flag.startswith("--xla_dump"))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], group: SingleProcess) -> Iterator[Workdir]:
    """Opens and locks the workdir while the block runs.

    Raises:
      ConfigError: see `open_workdir` and `Store.locked`; or the processes see different workdirs.
    """
    from flaxbert.storage.store import location
    from flaxbert.storage.workdir import Workdir, open_workdir

    root = group.on_first(lambda: os.fspath(open_workdir(path).root))
    workdir = Workdir(location(root))
    lock = workdir.store.locked(workdir.lock) if group.is_first else contextlib.nullcontext()
    with lock:
        _check_shared(workdir, group)
        yield workdir


def _check_shared(workdir: Workdir, group: SingleProcess) -> None:
    if group.count == 1:
        return
    holder = group.on_first(lambda: _holder(workdir.lock, workdir))
    until = time.monotonic() + _PATIENCE
    while _holder(workdir.lock, workdir) != holder:
        if time.monotonic() > until:
            raise ConfigError(
                f"--workdir: process {group.index} does not see the {workdir.root} of process 0. "
                "Name one that all machines share: gs://bucket/folder, or a network file system."
            )
        time.sleep(0.5)
    group.all_gather("seen")


def _holder(lock: PurePath, workdir: Workdir) -> str:
    """Returns what identifies the current holder of the lock."""
    if not workdir.store.is_file(lock):
        return ""
    text = workdir.store.read(lock).decode(errors="replace")
    # In a bucket it is a lease, of which only the token is constant.
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["token"])
    return text


def check_params(params: Any, group: SingleProcess) -> None:
    """Raises ModelFileError if the processes have read different weights.

    JAX assumes that they are the same, and would silently train a mixture of both.
    """
    if group.count == 1:
        return
    import jax  # here: errors of the command line should not wait for it
    import numpy as np

    found = 0
    for leaf in jax.tree.leaves(params):
        found = zlib.crc32(np.ascontiguousarray(leaf).data.cast("B"), found)
    for process, theirs in enumerate(group.all_gather(found)):
        if theirs != found:
            raise ModelFileError(
                f"config.model.path: process {process} has read other weights than process "
                f"{group.index}. Give all machines the same folder, or a hub id with "
                "config.model.revision."
            )


def check_collectives(group: SingleProcess) -> None:
    """Raises WrongNumbersError if what connects the processes gives wrong sums."""
    if group.count == 1:
        return
    from flaxbert.hosts.collectives import wrong_collectives

    found = group.all_gather(wrong_collectives(_SIZES, _TIMES))
    wrong = sorted({name for names in found for name in names})
    if wrong:
        raise WrongNumbersError(
            f"exchanges between the processes give wrong numbers: {', '.join(wrong)}. Do not train "
            "here: install another version of jax, or run on one process."
        )


def begin_training(group: SingleProcess, stop: StopSignal) -> None:
    """Waits until every process has compiled; from here on a stop is agreed on in the updates.

    Raises:
      InterruptedRun: one was asked to stop before.
    """
    if any(group.all_gather(stop.requested)):
        raise InterruptedRun("stopped by a signal before the first update: nothing to save")
    group.beat()
