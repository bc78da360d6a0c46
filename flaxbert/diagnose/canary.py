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
        if runs_kernels():
            found["wrong"] += wrong_kernels()
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


def runs_kernels() -> bool:
    """Whether a run on the first device alone uses model/kernels.py."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from flaxbert.loop.sharding import AXES, has_kernels
    from flaxbert.model.config import BertConfig

    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    return has_kernels(mesh, BertConfig(), "bfloat16")


def wrong_kernels() -> list[str]:
    """Returns "the attention kernel at 200 tokens" of each that differs from the plain code by more
    than rounding (about 3e-3 here), forward or backward, dropout included."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from flaxbert.model import kernels
    from flaxbert.model.attention import attend
    from flaxbert.model.dropout import dropout

    random = np.random.default_rng(0)
    rate, heads, size = 0.1, 2, 64

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.bfloat16)

    def results(function: Any, cotangent: jax.Array, dtype: str, *arrays: jax.Array) -> Any:
        @jax.jit
        def both(*arrays: jax.Array) -> Any:
            out, pullback = jax.vjp(function, *arrays)
            return out, *pullback(cotangent.astype(out.dtype))

        found = both(*(array.astype(dtype) for array in arrays))
        return [np.asarray(array, np.float64) for array in found]

    def differ(fused: Any, plain: Any, cotangent: jax.Array, *arrays: jax.Array) -> bool:
        pairs = zip(
            results(fused, cotangent, "bfloat16", *arrays),
            results(plain, cotangent, "float32", *arrays),
            strict=True,
        )
        norm = np.linalg.norm
        return not all(norm(found - right) <= 0.02 * norm(right) for found, right in pairs)

    wrong = []
    for length in (88, 200):  # a block that is not full, and several
        ids = jnp.asarray(np.repeat(np.arange(8), 25)[None, -length:], jnp.int32)
        places = jnp.asarray(np.tile(np.arange(25), 8)[None, -length:], jnp.int32)
        bits = jnp.asarray(random.integers(0, 2**32, (1, length), dtype=np.uint32))

        def fused(qkv: Any, ids: Any = ids, places: Any = places, bits: Any = bits) -> Any:
            bias = jnp.zeros((3, heads, size))
            return kernels.attend_packed(qkv, bias, ids, places, bits, rate)

        def plain(qkv: Any, ids: Any = ids, places: Any = places, bits: Any = bits) -> Any:
            same = {"query_sequences": ids, "key_sequences": ids, "key_positions": places}
            return attend(*jnp.moveaxis(qkv, 2, 0), **same, rate=rate, bits=bits)

        qkv, cotangent = drawn(1, length, 3, heads, size), drawn(1, length, heads, size)
        if differ(fused, plain, cotangent, qkv):
            wrong.append(f"the attention kernel at {length} tokens")

    count, features = 1200, 96  # more than all programs take at once; a block that is not full
    bits = jnp.asarray(random.integers(0, 2**32, count, dtype=np.uint32))
    scale, shift = (jnp.asarray(random.normal(size=features), jnp.float32) for _ in range(2))

    def fused_norm(y: Any, skip: Any) -> Any:
        return kernels.residual_norm(y, skip, shift, scale, shift, bits, rate, 1e-12)

    def plain_norm(y: Any, skip: Any) -> Any:
        x = dropout(y + shift, rate, bits) + skip
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True)) * scale + shift

    y, skip, cotangent = (drawn(count, features) for _ in range(3))
    if differ(fused_norm, plain_norm, cotangent, y, skip):
        wrong.append("the kernel of residual and LayerNorm")
    return wrong


if __name__ == "__main__":
    main()
