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
    """Returns the kernels of a run on the first device alone; None = it has none."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from flaxbert.loop.sharding import AXES, kernels_for
    from flaxbert.model.config import BertConfig

    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    return kernels_for(mesh, BertConfig(), "bfloat16")


def wrong_kernels(kernels: Any) -> list[str]:
    """Returns "the attention kernel at 200 tokens" of each that differs from the plain code by more
    than rounding (about 3e-3 here), forward or backward, dropout included.

    `kernels` are a model.kernels.Kernels.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from flaxbert.model.attention import attend
    from flaxbert.model.dropout import dropout
    from flaxbert.model.kernels import Projection

    random = np.random.default_rng(0)
    rate, heads, width, rows = 0.1, 4, 128, 2

    def drawn(*shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), dtype)

    def projection(inputs: int, outputs: int) -> Projection:
        kernel = drawn(inputs, outputs, dtype=jnp.float32) / inputs**0.5
        return Projection(kernel, drawn(outputs, dtype=jnp.float32))

    def linear(x: jax.Array, parameters: Projection) -> jax.Array:
        return jnp.matmul(x, parameters.kernel, precision="highest") + parameters.bias

    def results(function: Any, dtype: str, cotangent: jax.Array, *inputs: Any) -> list[Any]:
        @jax.jit
        def both(*inputs: Any) -> Any:
            out, pullback = jax.vjp(function, *inputs)
            return out, *pullback(cotangent.astype(out.dtype))

        def cast(leaf: jax.Array) -> jax.Array:  # parameters stay in float32
            return leaf.astype(dtype) if leaf.dtype == jnp.bfloat16 else leaf

        found = both(*jax.tree.map(cast, inputs))
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]

    def differ(kernel: Any, plain: Any, cotangent: jax.Array, *inputs: Any) -> bool:
        found = results(kernel, "bfloat16", cotangent, *inputs)
        right = results(plain, "float32", cotangent, *inputs)
        norm = np.linalg.norm
        # A key's bias changes nothing: its gradient is rounding.
        pairs = [pair for pair in zip(found, right, strict=True) if norm(pair[1]) > 1e-2]
        return not all(norm(one - other) <= 0.02 * norm(other) for one, other in pairs)

    def bits(*shape: int) -> jax.Array:
        return jnp.asarray(random.integers(0, 2**32, shape, dtype=np.uint32))

    wrong = []
    for length in (88, 200, 128, 256):  # blocks that are full and not, one and several
        ids = jnp.asarray(np.repeat(np.arange(11), 25)[None, -length:].repeat(rows, 0), jnp.int32)
        places = jnp.asarray(np.tile(np.arange(25), 11)[None, -length:].repeat(rows, 0), jnp.int32)
        mask = bits(rows, length)

        def attention(x: Any, parts: Any, ids: Any = ids, places: Any = places, mask: Any = mask):
            return kernels.attention(x, parts, ids, places, mask, rate, heads)

        def plain(x: Any, parts: Any, ids: Any = ids, places: Any = places, mask: Any = mask):
            split = (*x.shape[:2], heads, width // heads)
            same = {"query_sequences": ids, "key_sequences": ids, "key_positions": places}
            qkv = (linear(x, part).reshape(split) for part in parts)
            return attend(*qkv, **same, rate=rate, bits=mask).reshape(x.shape)

        parts = tuple(projection(width, width) for _ in range(3))
        inputs = (drawn(rows, length, width), parts)
        if differ(attention, plain, drawn(rows, length, width), *inputs):
            wrong.append(f"the attention kernel at {length} tokens")

    # More tokens than all programs take at once; of features, a block that is not full.
    length, features = 600, 96
    mask = bits(rows, length)

    def residual(x: Any, skip: Any, parameters: Any, scale: Any, shift: Any) -> Any:
        return kernels.residual(x, skip, parameters, scale, shift, mask, rate, 1e-12)

    def plain_residual(x: Any, skip: Any, parameters: Any, scale: Any, shift: Any) -> Any:
        y = dropout(linear(x, parameters), rate, mask) + skip
        centred = y - y.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True)) * scale + shift

    vectors = [drawn(features, dtype=jnp.float32) for _ in range(2)]
    inputs = (drawn(rows, length, width), drawn(rows, length, features))
    parameters, cotangent = projection(width, features), drawn(rows, length, features)
    if differ(residual, plain_residual, cotangent, *inputs, parameters, *vectors):
        wrong.append("the kernel of residual and LayerNorm")

    def dense(x: Any, parameters: Any) -> Any:
        return kernels.dense(x, parameters, jax.nn.silu)

    def plain_dense(x: Any, parameters: Any) -> Any:
        return jax.nn.silu(linear(x, parameters))

    if differ(dense, plain_dense, cotangent, inputs[0], parameters):
        wrong.append("the kernel of a linear layer and its activation")
    return wrong


if __name__ == "__main__":
    main()
