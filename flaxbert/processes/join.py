"""Joining the other processes of a run, and leaving them: with what code, and what they are told.

The surprising thing: an error here ends the process without Python's own end. That would wait for
the others in JAX, and they may be gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from flaxbert import interrupt, terminal
from flaxbert.config import Processes
from flaxbert.errors import INTERNAL_ERROR, InterruptedRun, exit_code_of
from flaxbert.processes import coordination
from flaxbert.processes.found import find_peers
from flaxbert.processes.group import Alone, Group
from flaxbert.processes.watch import Watch


@contextlib.contextmanager
def joined(limits: Processes, stop: interrupt.StopSignal) -> Iterator[Alone]:
    """Joins the other processes of this run while the block runs, where there are any.

    Raises:
      ConfigError: the environment names them, but not fully.
      PeerLostError: they do not all come.
    """
    peers = find_peers(os.environ)
    if peers is None:
        yield Alone()
        return
    table = coordination.connect(peers, limits.lost_after)
    watch = Watch(table, limits, stop)
    stop.on_leaving(lambda: watch.ended(*interrupt.leaving()))
    watch.start()
    terminal.speak_as(table.index)
    coordination.answer_abort(table.address, watch.hears_nothing, watch.coordinator_lost)
    group = Group(table, watch)
    try:
        yield group
    except InterruptedRun:  # all have agreed, and saved
        _leave_together(group, watch, stop)
        raise
    except BaseException as error:
        code = exit_code_of(error)
        if code == INTERNAL_ERROR:
            # Where another process is gone anything may be raised here.
            watch.wait_for_verdict()
        interrupt.leave_at_the_end()
        watch.ended(code, terminal.printable(str(error).partition("\n")[0]))
        raise
    _leave_together(group, watch, stop)


def _leave_together(group: Alone, watch: Watch, stop: interrupt.StopSignal) -> None:
    stop.settle()  # before: whoever is asked to stop later than that has nothing to add
    group.all_of("done")
    watch.close()
    with contextlib.suppress(Exception):  # one that has gone since: the outcome stands
        coordination.disconnect()
