"""python -m flaxbert.diagnose.canary: what JAX sees, and whether it computes the right numbers.

Prints one JSON object. A process of its own, because a device that somebody else holds can make
JAX wait for ever, and the doctor must not. The surprising thing: collectives have returned wrong
sums without any error (jax issue 40830), so they are compared with NumPy, bit by bit: the numbers
are integers small enough for every order of adding to be exact.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

# Bytes per device: one packet, a few, and what a layer's gradient has.
SIZES = (2**10, 2**18, 2**22)

# The doctor has given up long before. Should it have been killed, nobody else ends this process.
_LAST_SECONDS = 600


def main() -> None:
    """Looks at the devices and prints {"devices": [...], "wrong": [...], "error": ""}."""
    signal.alarm(_LAST_SECONDS)
    found: dict[str, Any] = {"devices": [], "wrong": [], "error": ""}
    try:
        import jax

        found["platform"] = jax.default_backend()
        found["devices"] = [describe(device) for device in jax.devices()]
        found["wrong"] = [*wrong_products(), *wrong_collectives(SIZES)]
        if kernels := kernels_here():
            from flaxbert.model.kernels.check import wrong_kernels

            found["wrong"] += wrong_kernels(kernels)
        found["collectives"] = len(jax.devices()) > 1
    except Exception as error:  # the finding is that it cannot be used
        lines = str(error).strip().splitlines() or [""]
        found["error"] = f"{type(error).__name__}: {lines[0][:300]}"
    json.dump(found, sys.stdout)


def describe(device: Any) -> dict[str, Any]:
    """Returns kind and memory of a device, in bytes where it tells."""
    try:
        memory = (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # CPUs and some plugins have no such statistics
        memory = None
    return {"kind": device.device_kind, "platform": device.platform, "memory": memory}


def wrong_products() -> list[str]:
    """Returns the element types in which a product of matrices differs from NumPy's."""
    import jax
    import numpy as np

    random = np.random.default_rng(0)
    # Integers up to 7: sums of 256 products are exact in float32, whatever the order; and each
    # factor is exact in bfloat16, which accelerators multiply in.
    a, b = random.integers(-7, 8, (2, 256, 256)).astype(np.float32)
    wrong = []
    for dtype in ("float32", "bfloat16"):
        product = jax.jit(lambda x, y: jax.lax.dot(x, y, preferred_element_type=np.float32))(
            jax.numpy.asarray(a, dtype), jax.numpy.asarray(b, dtype)
        )
        if not np.array_equal(np.asarray(product), a @ b):
            wrong.append(f"a product of matrices in {dtype}")
    return wrong


def wrong_collectives(sizes: tuple[int, ...]) -> list[str]:
    """Returns "psum of 4096 kB" of each collective over all devices that differs from NumPy."""
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec

    count = len(jax.devices())
    if count < 2:
        return []
    mesh = jax.make_mesh((count,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    ring = [(i, (i + 1) % count) for i in range(count)]
    wrong = []
    for size in sizes:
        length = size // 4 // count * count
        # Small enough for exact sums over thousands of devices.
        data = np.random.default_rng(size).integers(0, 1000, (count, length)).astype(np.float32)
        expected = {
            "psum": np.tile(data.sum(0), (count, 1)),
            "psum_scatter": data.sum(0).reshape(count, -1),
            "all_gather": np.tile(data.reshape(1, -1), (count, 1)),
            "ppermute": np.roll(data, 1, axis=0),
        }
        for name, answer in expected.items():

            def local(x: Any, name: str = name) -> Any:
                if name == "ppermute":
                    return jax.lax.ppermute(x, "all", ring)
                options = {"tiled": True} if name in ("psum_scatter", "all_gather") else {}
                return getattr(jax.lax, name)(x[0], "all", **options)[None]

            over_all = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=PartitionSpec("all"),
                out_specs=PartitionSpec("all"),
                check_vma=False,
            )
            if not np.array_equal(np.asarray(jax.jit(over_all)(data)), answer):
                wrong.append(f"{name} of {size // 1024} kB")
    return wrong


def kernels_here() -> Any:
    """Returns the kernels written for the first device alone, right or wrong; None = none are."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from flaxbert.loop.sharding import AXES, kernels_written_for
    from flaxbert.model.config import BertConfig

    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    return kernels_written_for(mesh, BertConfig(), "bfloat16")


if __name__ == "__main__":
    main()
