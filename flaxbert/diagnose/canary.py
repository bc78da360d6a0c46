"""python -m flaxbert.diagnose.canary: the devices that JAX sees, and whether they compute right.

Prints one JSON object. It is a separate process, because a device that another process holds can
make JAX wait for ever.
Note: it never joins other processes. JAX would take it for a restarted process of an active run,
and end that run; communication between processes is checked whenever training starts.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

# The doctor's own limit is shorter; this one is for a doctor that was killed.
_LAST_SECONDS = 600


def main() -> None:
    """Checks the devices and prints {"devices": [...], "wrong": [...], "error": ""}."""
    signal.alarm(_LAST_SECONDS)
    found: dict[str, Any] = {"devices": [], "wrong": [], "error": ""}
    try:
        look(found)
    except Exception as error:  # JAX cannot be used: that is the finding
        lines = str(error).strip().splitlines() or [""]
        found["error"] = f"{type(error).__name__}: {lines[0][:300]}"
    json.dump(found, sys.stdout)


def look(found: dict[str, Any]) -> None:
    """Adds the devices and what is wrong with them to `found`."""
    import jax

    from flaxbert.hosts.collectives import wrong_collectives

    found["platform"] = jax.default_backend()
    found["devices"] = [describe(device) for device in jax.devices()]
    found["wrong"] = [*wrong_products(), *wrong_collectives()]
    if kernels := kernels_here():
        from flaxbert.model.kernels.self_test import wrong_kernels

        found["wrong"] += wrong_kernels(kernels)
    found["collectives"] = len(jax.devices()) > 1


def describe(device: Any) -> dict[str, Any]:
    """Returns kind and memory (bytes, or None) of a device."""
    try:
        memory = (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # CPUs and some plugins have no memory statistics
        memory = None
    return {"kind": device.device_kind, "platform": device.platform, "memory": memory}


def wrong_products() -> list[str]:
    """Returns the element types in which a product of matrices differs from NumPy's."""
    import jax
    import numpy as np

    random = np.random.default_rng(0)
    # Integers up to 7: sums of 256 products are exact in float32 in any order, and each factor is
    # exact in bfloat16.
    a, b = random.integers(-7, 8, (2, 256, 256)).astype(np.float32)
    wrong = []
    for dtype in ("float32", "bfloat16"):
        product = jax.jit(lambda x, y: jax.lax.dot(x, y, preferred_element_type=np.float32))(
            jax.numpy.asarray(a, dtype), jax.numpy.asarray(b, dtype)
        )
        if not np.array_equal(np.asarray(product), a @ b):
            wrong.append(f"a product of matrices in {dtype}")
    return wrong


def kernels_here() -> Any:
    """Returns the kernels written for the first device; None = there are none."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from flaxbert.loop.mesh import AXES, kernels_written_for
    from flaxbert.model.bert_config import BertConfig

    mesh = Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), AXES)
    return kernels_written_for(mesh, BertConfig(), "bfloat16")


if __name__ == "__main__":
    main()
