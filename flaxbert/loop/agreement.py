"""What the processes of a run agree on inside its programs: to stop, and that saves have ended.

Each device carries what its own process says, and a program returns the most of all: the same
answer everywhere after the same update. Note: nothing is exchanged for it but one more number
beside the gradients; a message of its own would find processes at different updates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from flaxbert.errors import InterruptedRun

STOP, SAVING = 0, 1  # places in what a process says
Said = Int[Array, "devices two"]


class Agreement:
    """What this process says, and what all have said."""

    def __init__(self, mesh: Mesh, asked: Callable[[], bool], saving: Callable[[], bool]) -> None:
        """`asked`: whether this process was asked to stop; `saving`: whether it saves."""
        self._asked, self._saving = asked, saving
        self._shape = (mesh.size, 2)
        self._sharding = said_sharding(mesh)
        everywhere = NamedSharding(mesh, P())
        self._all = jax.jit(all_said, out_shardings=everywhere)
        self._array = functools.cache(self._make)
        self._unread: jax.Array | None = None

    def said(self) -> Said:
        """Returns the argument of the next program."""
        return self._array(bool(self._asked()), bool(self._saving()))

    def check(self) -> None:
        """Asks all processes, and reads what they answered the time before: devices have work.

        Raises:
          InterruptedRun: one of them was asked to stop; the same in all.
        """
        answer, self._unread = self._unread, self._all(self.said())
        if answer is not None and np.asarray(answer)[STOP]:
            raise InterruptedRun("stopped by a signal")

    def _make(self, asked: bool, saving: bool) -> Said:
        mine = np.array([[asked, saving]], np.int32)
        return jax.make_array_from_callback(self._shape, self._sharding, lambda _: mine)


def all_said(said: Said) -> Int[Array, " two"]:
    """Returns the most of what processes say."""
    return jnp.max(said, axis=0)


def said_sharding(mesh: Mesh) -> NamedSharding:
    """A row for each device."""
    return NamedSharding(mesh, P(mesh.axis_names))
