"""Agreement of several processes inside compiled programs: to stop, and that saves have ended.

Each device carries the votes of its process, and a program returns their maximum: the same answer
in all processes after the same update. Note: this adds only two numbers to the collectives of an
update; a separate message would reach the processes at different updates.
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

STOP, SAVING = 0, 1  # indices of the votes
Said = Int[Array, "devices two"]


class Agreement:
    """Makes the votes of this process, and reads the result of all."""

    def __init__(self, mesh: Mesh, asked: Callable[[], bool], saving: Callable[[], bool]) -> None:
        """`asked`: whether this process got a signal; `saving`: whether it is saving."""
        self._asked, self._saving = asked, saving
        self._shape = (mesh.size, 2)
        self._sharding = said_sharding(mesh)
        everywhere = NamedSharding(mesh, P())
        self._all = jax.jit(all_said, out_shardings=everywhere)
        self._array = functools.cache(self._make)
        self._unread: jax.Array | None = None

    def said(self) -> Said:
        """Returns this process's votes, the argument of the next program."""
        return self._array(bool(self._asked()), bool(self._saving()))

    def check(self) -> None:
        """Starts a vote of all processes, and reads the previous one, so that devices stay busy.

        Raises:
          InterruptedRun: one of them got a signal; raised in all processes.
        """
        answer, self._unread = self._unread, self._all(self.said())
        if answer is not None and np.asarray(answer)[STOP]:
            raise InterruptedRun("stopped by a signal")

    def _make(self, asked: bool, saving: bool) -> Said:
        mine = np.array([[asked, saving]], np.int32)
        return jax.make_array_from_callback(self._shape, self._sharding, lambda _: mine)


def all_said(said: Said) -> Int[Array, " two"]:
    """Returns the maximum of all votes."""
    return jnp.max(said, axis=0)


def said_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of votes: one row per device."""
    return NamedSharding(mesh, P(mesh.axis_names))
