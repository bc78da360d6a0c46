"""The place that this process has among those of its run, kept from a second one on this machine.

The surprising thing: JAX takes whoever comes with a process's number for that process, started
again, and ends the run on all machines. So a command typed a second time must not get that far. The
place is a name in the kernel (an abstract socket) that goes with its process: nothing stays behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import struct
import sys
from collections.abc import Iterator, Mapping

from flaxbert.errors import ConfigError
from flaxbert.processes.found import COORDINATOR, INDEX, PORT

# What tells apart the processes that may run on one machine, of one run or of several. On a host of
# a TPU pod nothing needs to: it has one.
_TOLD_APART_BY = (
    COORDINATOR,
    PORT,
    INDEX,
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"),
    *("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK"),
    *("MEGASCALE_SLICE_ID", "TPU_WORKER_ID", "CLOUD_TPU_TASK_ID"),
)


@contextlib.contextmanager
def held(environment: Mapping[str, str]) -> Iterator[None]:
    """Holds this process's place while the block runs. For Linux; elsewhere it holds nothing.

    Raises:
      ConfigError: another process on this machine has it; names its pid.
    """
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            place = stack.enter_context(socket.socket(socket.AF_UNIX))
            name = _name(environment)
            try:
                place.bind(name)
                place.listen()  # so that a second one can ask whose it is
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ConfigError(
                        f"{_holder(name)} on this machine has this process's place in the same "
                        "run. It was left as it is: wait for it to end, or stop it and run the "
                        f"command again. Another run needs another {COORDINATOR}."
                    ) from error
                # A sandbox that has no such names: then as it would be without.
        yield


def _name(environment: Mapping[str, str]) -> str:
    told = "\n".join(environment.get(name, "") for name in _TOLD_APART_BY)
    return "\0flaxbert-" + hashlib.sha256(told.encode()).hexdigest()


def _holder(name: str) -> str:
    """Returns who has the name, as far as the kernel tells."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        asking.connect(name)
        size = struct.calcsize("3i")  # pid, user, group: 0 is one in another container
        pid, _, _ = struct.unpack(
            "3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        if pid:
            return f"pid {pid}"
    return "another process"
