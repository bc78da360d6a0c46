"""Joins the other processes of a run, and leaves them with an exit code and a message.

Note: after an error the process ends without Python's shutdown, in which JAX would wait for the
others: they may be gone.
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
    """Joins the other processes of this run, if any, while the block runs.

    If a process sends no heartbeat for `lost_after` seconds, all others end.

    Raises:
      ConfigError: the environment describes them incompletely, or their address is in use.
      PeerLostError: they do not all connect.
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
    except InterruptedRun:  # all processes have agreed to stop, and saved
        _leave_together(group, watchdog, stop)
        raise
    except BaseException as error:
        code = exit_code_of(error)
        others = code
        if code == INTERNAL_ERROR and not isinstance(error, FlaxbertError):
            # When another process is lost, any library may raise anything here.
            watchdog.wait_for_loss()
            others = PeerLostError.exit_code  # the defect is in this process, not in theirs
        signals.leave_at_the_end()
        watchdog.tell(code, console.printable(str(error).partition("\n")[0]), others=others)
        raise
    _leave_together(group, watchdog, stop)


def refuse_several() -> None:
    """Raises ConfigError if this is one of several processes: each would do the whole work."""
    if find_peers(os.environ) is not None:
        raise ConfigError(
            "this command runs in one process, and several were started. Start it once: without "
            f"{COUNT} and {INDEX}, under Slurm in a step of one task; on one host of a TPU pod "
            "set JAX_PLATFORMS=cpu, as the chips of a pod work only on all hosts together."
        )


def _leave_together(group: SingleProcess, watchdog: Watchdog, stop: signals.StopSignal) -> None:
    stop.settle()  # a later signal does not change the outcome
    group.all_gather("done")
    watchdog.close()
    with contextlib.suppress(Exception):  # losing a process now does not change the outcome
        coordination.disconnect()
