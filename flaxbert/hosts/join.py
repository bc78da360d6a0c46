"""Joining the other processes of a run, and leaving them: with what code, and what they are told.

Note: an error ends the process without Python's own end, which would wait for the others in JAX:
they may be gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from flaxbert.errors import (
    INTERNAL_ERROR,
    ConfigError,
    FlaxbertError,
    InterruptedRun,
    PeerLostError,
    exit_code_of,
)
from flaxbert.hosts import coordination
from flaxbert.hosts.discovery import COUNT, INDEX, find_peers
from flaxbert.hosts.group import Group, SingleProcess
from flaxbert.hosts.watchdog import LEAVING_PATIENCE, Watchdog
from flaxbert.shell import console, signals


@contextlib.contextmanager
def joined(stop: signals.StopSignal, lost_after: float) -> Iterator[SingleProcess]:
    """Joins the other processes of this run while the block runs, where there are any.

    A process without heartbeats for `lost_after` seconds ends all others.

    Raises:
      ConfigError: the environment names them, but not fully; or others use their address.
      PeerLostError: they do not all come.
    """
    peers = find_peers(os.environ)
    if peers is None:
        yield SingleProcess()
        return
    table = coordination.connect(peers, lost_after)
    watchdog = Watchdog(table)
    stop.on_leaving(lambda: watchdog.tell(*signals.leaving(), patience=LEAVING_PATIENCE))
    watchdog.start()
    console.speak_as(table.index)
    coordination.on_lost(table, watchdog.lost)
    group = Group(table, watchdog)
    try:
        yield group
    except InterruptedRun:  # all have agreed, and saved
        _leave_together(group, watchdog, stop)
        raise
    except BaseException as error:
        code = exit_code_of(error)
        others = code
        if code == INTERNAL_ERROR and not isinstance(error, FlaxbertError):
            # Where another process is gone anything may be raised here, but not by us.
            watchdog.wait_for_loss()
            others = PeerLostError.exit_code  # a defect here is none of theirs
        signals.leave_at_the_end()
        watchdog.tell(code, console.printable(str(error).partition("\n")[0]), others=others)
        raise
    _leave_together(group, watchdog, stop)


def refuse_several() -> None:
    """Raises ConfigError if this is one of several processes: each would do all of the work."""
    if find_peers(os.environ) is not None:
        raise ConfigError(
            "this command runs in one process, and several were started. Start it once: without "
            f"{COUNT} and {INDEX}, under Slurm in a step of one task; on one host of a TPU pod "
            "set JAX_PLATFORMS=cpu, its chips work in all hosts or in none."
        )


def _leave_together(group: SingleProcess, watchdog: Watchdog, stop: signals.StopSignal) -> None:
    stop.settle()  # before: whoever is asked to stop later than that has nothing to add
    group.all_gather("done")
    watchdog.close()
    with contextlib.suppress(Exception):  # one that has gone since: the outcome stands
        coordination.disconnect()
