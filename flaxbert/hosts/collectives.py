"""Checks collectives over all devices against NumPy, bit by bit.

Collectives have returned wrong sums without any error (jax issue 40830: reduce-scatter between
processes on CPUs), so a run of several processes checks them before it trains. The numbers are
integers small enough to be exact in float32 in every order of summation.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# Bytes per device: one packet, a few, a layer's gradient, and an embedding table's.
SIZES = (2**10, 2**18, 2**22, 2**24)
_MOST = 2**24  # numbers over all devices
_LARGEST = 1000  # value: sums over thousands of devices stay exact


def wrong_collectives(sizes: tuple[int, ...] = SIZES, times: int = 1) -> list[str]:
    """Returns "psum of 4096 kB" of each collective over all devices that differs from NumPy.

    All processes must call it; each compares the shards of its own devices.
    """
    count = len(jax.devices())
    if count < 2:
        return []
    mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))
    wrong = []
    for size in sizes:
        # Every process draws the numbers of all devices, and all_gather gives each of them all.
        length = max(min(size // 4, _MOST // count) // count, 1) * count
        programs = {name: _program(mesh, name) for name in _ANSWERS}
        for time in range(times):
            random = np.random.default_rng((size, time))
            data = random.integers(0, _LARGEST, (count, length)).astype(np.float32)
            there = _spread(mesh, data)
            for name, answer in _ANSWERS.items():
                name_of = f"{name} of {size // 1024} kB"
                if name_of not in wrong and not _is(programs[name](there), answer(data)):
                    wrong.append(name_of)
    return wrong


# The expected result of each for [devices, length] numbers, one row per device.
_ANSWERS = {
    "psum": lambda data: np.broadcast_to(data.sum(0), data.shape),
    "psum_scatter": lambda data: data.sum(0).reshape(len(data), -1),
    "all_gather": lambda data: np.broadcast_to(data.reshape(1, -1), (len(data), data.size)),
    "all_to_all": lambda data: (
        data.reshape(len(data), len(data), -1).swapaxes(0, 1).reshape(data.shape)
    ),
    "ppermute": lambda data: np.roll(data, 1, axis=0),
}


def _program(mesh: Any, name: str) -> Any:
    count = mesh.size
    ring = [(i, (i + 1) % count) for i in range(count)]

    def local(x: Any) -> Any:
        if name == "ppermute":
            return jax.lax.ppermute(x, "all", ring)
        if name == "all_to_all":
            parts = x.reshape(count, -1)
            return jax.lax.all_to_all(parts, "all", 0, 0, tiled=True).reshape(x.shape)
        options = {"tiled": True} if name in ("psum_scatter", "all_gather") else {}
        return getattr(jax.lax, name)(x[0], "all", **options)[None]

    rows = PartitionSpec("all")
    over_all = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return jax.jit(over_all)


def _spread(mesh: Any, data: np.ndarray) -> jax.Array:
    rows = NamedSharding(mesh, PartitionSpec("all"))
    return jax.make_array_from_callback(data.shape, rows, lambda index: data[index])


def _is(found: jax.Array, answer: np.ndarray) -> bool:
    return all(
        np.array_equal(np.asarray(shard.data), answer[shard.index])
        for shard in found.addressable_shards
    )
