"""Joining the other processes of a run, and leaving them: with what code, and what they are told.

The surprising thing: this comes before the command line is read, so that a config file which one
machine lacks ends the run on all. And an error ends the process without Python's own end, which
would wait for the others in JAX: they may be gone.
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
from flaxbert.hosts.discovery import COUNT, INDEX, Peers, find_peers
from flaxbert.hosts.group import Alone, Group
from flaxbert.hosts.heartbeat import Watch
from flaxbert.hosts.place import held
from flaxbert.shell import console, signals


@contextlib.contextmanager
def joined(stop: signals.StopSignal) -> Iterator[Alone]:
    """Joins the other processes of this run while the block runs, where there are any.

    Raises:
      ConfigError: the environment names them, but not fully; or others use their address; or this
        machine has this process of the run already.
      PeerLostError: they do not all come.
    """
    peers = find_peers(os.environ)
    if peers is None:
        yield Alone()
        return
    with held(peers.place), _joined(peers, stop) as group:
        yield group


@contextlib.contextmanager
def _joined(peers: Peers, stop: signals.StopSignal) -> Iterator[Group]:
    table = coordination.connect(peers)
    watch = Watch(table, stop)
    stop.on_leaving(lambda: watch.ended(*signals.leaving()))
    watch.start()
    console.speak_as(table.index)
    coordination.answer_abort(
        table, watch.hears_nothing, watch.coordinator_lost, watch.connection_broken
    )
    group = Group(table, watch)
    try:
        yield group
    except InterruptedRun:  # all have agreed, and saved
        _leave_together(group, watch, stop)
        raise
    except BaseException as error:
        code = exit_code_of(error)
        others = code
        if code == INTERNAL_ERROR and not isinstance(error, FlaxbertError):
            # Where another process is gone anything may be raised here, but not by us.
            watch.wait_for_verdict()
            others = PeerLostError.exit_code  # a defect here is none of theirs
        signals.leave_at_the_end()
        watch.ended(code, console.printable(str(error).partition("\n")[0]), others=others)
        raise
    _leave_together(group, watch, stop)


def refuse_several() -> None:
    """Raises ConfigError if this is one of several processes: each would do all of the work."""
    if find_peers(os.environ) is not None:
        raise ConfigError(
            "this command runs in one process, and several were started. Start it once: without "
            f"{COUNT} and {INDEX}, under Slurm in a step of one task; on one host of a TPU pod "
            "set JAX_PLATFORMS=cpu, its chips work in all hosts or in none."
        )


def _leave_together(group: Alone, watch: Watch, stop: signals.StopSignal) -> None:
    stop.settle()  # before: whoever is asked to stop later than that has nothing to add
    group.all_of("done")
    watch.close()
    with contextlib.suppress(Exception):  # one that has gone since: the outcome stands
        coordination.disconnect()
