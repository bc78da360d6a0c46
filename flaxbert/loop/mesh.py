"""The mesh of three axes ("data", "fsdp", "model") and the shardings of batch, state and results.

Rows of a batch are sharded over data and fsdp; parameters and moments over fsdp and model, by an
ordered table from path to PartitionSpec, and moments over data too (ZeRO stage 1, Rajbhandari et
al. 2020, arXiv 1910.02054): each device updates its shard of the parameters and gathers the others.
An unmatched parameter is an error, so that none is replicated by accident.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxbert.config import Mesh as MeshConfig
from flaxbert.errors import ConfigError
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.kernels import Kernels
from flaxbert.model.matmul import is_half

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")

# First match wins. Attention heads and feed-forward features are split over "model" (Megatron's
# column- then row-parallel pair), the other dimension over "fsdp".
_RULES: tuple[tuple[str, P], ...] = (
    (r"embeddings/embedding$", P(None, "fsdp")),
    (r"attention/self/(query|key|value)/kernel$", P("fsdp", "model")),
    (r"attention/self/(query|key|value)/bias$", P("model")),
    (r"intermediate/dense/kernel$", P("fsdp", "model")),
    (r"intermediate/dense/bias$", P("model")),
    (r"output/dense/kernel$", P("model", "fsdp")),
    (r"pooler/dense/kernel$", P("fsdp", None)),
    (r"(output|pooler)/dense/bias$", P()),
    (r"LayerNorm/(scale|bias)$", P()),
    # A head's own parameters, whatever its prefix.
    (r"^(?!.*\bbert/).*kernel$", P("fsdp", None)),
    (r"^(?!.*\bbert/).*(bias|scale)$", P()),
)


def make_mesh(asked: MeshConfig, config: BertConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh for some devices (None: all of this run's).

    Raises:
      ConfigError: sizes that do not divide the devices or the model; lists the possible ones.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(asked)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed:
        raise ConfigError(
            f"config.mesh: {sizes} needs a multiple of {fixed} devices, there are {len(devices)}. "
            f"The product of the sizes must be one of {_divisors(len(devices))}."
        )
    sizes = {axis: len(devices) // fixed if size == -1 else size for axis, size in sizes.items()}
    for axis, dimension, name in (
        ("fsdp", config.hidden_size, "hidden_size"),
        ("model", config.num_attention_heads, "num_attention_heads"),
        ("model", config.intermediate_size, "intermediate_size"),
    ):
        if dimension % sizes[axis]:
            raise ConfigError(
                f"config.mesh.{axis}={sizes[axis]} does not divide the model's {name} {dimension}. "
                f"Possible sizes: {_divisors(math.gcd(dimension, len(devices)))}."
            )
    count = math.prod(sizes.values())
    left_out = {d.process_index for d in devices} - {d.process_index for d in devices[:count]}
    if left_out:
        raise ConfigError(
            f"config.mesh: {sizes} uses {count} of {len(devices)} devices and none of process "
            f"{min(left_out)}. Use all of them, or start fewer processes."
        )
    grid = np.asarray(devices[:count]).reshape([sizes[axis] for axis in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def spec_for(path: str) -> P:
    """Returns the PartitionSpec of a parameter path.

    Raises:
      ValueError: no rule matches.
    """
    for pattern, spec in _RULES:
        if re.search(pattern, path):
            return spec
    raise ValueError(f"no sharding rule matches the parameter {path!r}")


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the sharding of each leaf: parameters by rule, optimizer state like its parameter.

    An array of the optimizer belongs to a parameter if its path ends with that of the parameter
    and it has the same shape. Counters, and statistics of another shape, are replicated.
    """
    flat = jax.tree_util.tree_leaves_with_path
    spread = moment_shardings(mesh, state["params"])
    by_path = {_names(path): sharding for path, sharding in flat(spread)}
    shapes = {_names(path): leaf.shape for path, leaf in flat(state["params"])}

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        part, *names = _names(path)
        if part in ("params", "frozen"):
            return NamedSharding(mesh, spec_for("/".join(names)))
        ends = (tuple(names[start:]) for start in range(len(names)))
        own = next((end for end in ends if shapes.get(end) == leaf.shape), None)
        return by_path[own] if own else NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(sharding, state)


def moment_shardings(mesh: Mesh, params: Any) -> Any:
    """Returns the shardings of parameters during their update: over "data" too, like moments."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, over_data(mesh, spec_for("/".join(_names(path))), leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, params)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(part.key) for part in path)


def over_data(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> P:
    """Returns `spec` with the first divisible axis of the array sharded over "data" as well.

    Vectors are not sharded: they are many and small.
    """
    if mesh.shape["data"] == 1 or len(shape) < 2:
        return spec
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    for place, axis in enumerate(axes):
        parts = mesh.shape["data"] * (1 if axis is None else mesh.shape[axis])
        if shape[place] % parts == 0:
            axes[place] = "data" if axis is None else (axis, "data")
            return P(*axes)
    return spec


def gather_tables(mesh: Mesh, params: Any) -> Any:
    """Returns the parameters with embedding tables gathered on every device.

    A lookup in a table whose features are sharded over "fsdp", by rows that are sharded over it
    too, would make the compiler replicate the activations.
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def gather(path: tuple[Any, ...], leaf: Any) -> Any:
        whole = path[-1].key == "embedding"
        return jax.lax.with_sharding_constraint(leaf, replicated(mesh)) if whole else leaf

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.lru_cache(maxsize=16)
def kernels_for(mesh: Mesh, config: BertConfig, dtype: str) -> Kernels | None:
    """Returns the kernels that a run on the mesh uses, None for the plain code.

    The TPU kernels were written without a TPU. So a run compares them with the plain code first; if
    they differ by more than rounding or do not run, it warns and uses the plain code. A TPU that is
    only planned for (planning/) cannot be tested.
    """
    kernels = kernels_written_for(mesh, config, dtype)
    is_here = mesh.devices.flat[0].platform == "tpu" and jax.default_backend() == "tpu"
    if kernels is None or not is_here:
        return kernels
    right = _are_right()
    if jax.process_count() > 1:  # one program for all
        right = bool(np.all(multihost_utils.process_allgather(np.array(right))))
    return kernels if right else None


def kernels_written_for(mesh: Mesh, config: BertConfig, dtype: str) -> Kernels | None:
    """Returns the kernels for the mesh's devices: TPUs, or one NVIDIA GPU (Ampere or later).

    In half precision only. On several GPUs each kernel would need the shardings of its arrays.
    """
    if not is_half(dtype):
        return None
    device = mesh.devices.flat[0]
    try:
        if device.platform == "tpu":
            from flaxbert.model.kernels import tpu

            return tpu.kernels_of(functools.partial(_spread, mesh), mesh.shape["model"])
        if device.platform == "gpu" and mesh.size == 1 and _serves(device, config.head_size):
            from flaxbert.model.kernels import gpu  # Pallas takes long to import

            return gpu.KERNELS if gpu.are_written() else None
    except ImportError as error:
        said = f"this JAX has no Pallas for {device.platform}s, updates take longer: {error}"
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    return None


@functools.cache
def _are_right() -> bool:
    """Whether the TPU kernels equal the plain code on this TPU."""
    from flaxbert.model.kernels import self_test, tpu

    alone = tpu.kernels_of(lambda function, *_: functools.partial(function, 0), 1)
    try:
        wrong = self_test.wrong_kernels(alone, lengths=(256,))
    except Exception as error:  # any error of the compiler or the chip
        wrong = [(str(error).strip().splitlines() or [type(error).__name__])[0]]
    if wrong:
        warnings.warn(
            "flaxbert's kernels are not used on this TPU, updates take longer. Please report: "
            f"{'; '.join(wrong)}",
            RuntimeWarning,
            stacklevel=3,
        )
    return not wrong


def _serves(device: Any, head_size: int) -> bool:
    generation = str(getattr(device, "compute_capability", "")).partition(".")[0]
    # AMD's generations are not numbers. Blocks are powers of two, and must fit shared memory.
    return generation.isdecimal() and int(generation) >= 8 and head_size in (16, 32, 64, 128)


def _spread(
    mesh: Mesh, function: Callable[..., Any], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Callable[..., Any]:
    """Implements `Spread` of model/kernels/tpu.py on a mesh."""
    if mesh.size == 1:
        return functools.partial(function, 0)
    axes = {"r": ROWS, "h": "model", ".": None}

    def specs(letters: tuple[str, ...]) -> tuple[P, ...]:
        return tuple(P(*(axes[letter] for letter in each)) for each in letters)

    def local(*arrays: Any) -> Any:
        return function(jax.lax.axis_index("model"), *arrays)

    # Pallas does not annotate which values vary over the mesh.
    return jax.shard_map(
        local, mesh=mesh, in_specs=specs(inputs), out_specs=specs(outputs), check_vma=False
    )


def row_blocks(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Returns the blocks of a batch's rows on this process's devices, and the number of all blocks.

    Devices along "model" hold the same rows, so a block may belong to several processes.
    """
    count = row_multiple(mesh)
    here = jax.process_index()
    by_block = mesh.devices.reshape(count, -1)
    held = [
        block
        for block, devices in enumerate(by_block)
        if any(device.process_index == here for device in devices)
    ]
    return tuple(held), count


def on_mesh(mesh: Mesh, batch: dict[str, Any], *, micro_batches: bool) -> dict[str, Any]:
    """Returns the arrays of a batch as global arrays, from this process's rows.

    A single process returns them as they are.
    """
    if jax.process_count() == 1:
        return batch
    sharding = batch_sharding(mesh, micro_batches=micro_batches)
    axis = int(micro_batches)
    blocks, count = row_blocks(mesh)

    def whole(local: np.ndarray) -> jax.Array:
        each = local.shape[axis] // len(blocks)
        shape = (*local.shape[:axis], each * count, *local.shape[axis + 1 :])

        def part(index: Any) -> np.ndarray:
            start, _, _ = index[axis].indices(shape[axis])
            place = blocks.index(start // each) * each
            return local[(*[slice(None)] * axis, slice(place, place + each))]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: whole(array) for name, array in batch.items()}


def on_host(mesh: Mesh, tree: Any, *, wanted: bool) -> Any:
    """Returns whole arrays for this process to write, None if they are not `wanted` here.

    All processes must call it: sharded arrays are gathered, one after the other.
    """
    if jax.process_count() == 1:
        return tree
    gather = jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))

    def whole(leaf: jax.Array) -> np.ndarray | None:
        there = leaf if leaf.is_fully_replicated else gather(leaf)
        return np.asarray(there) if wanted else None

    return jax.tree.map(whole, tree)


def batch_sharding(mesh: Mesh, *, micro_batches: bool) -> NamedSharding:
    """Shards rows over data and fsdp; batches are [A, R, ...] with micro-batches, else [R, ...]."""
    return NamedSharding(mesh, P(None, ROWS) if micro_batches else P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def row_multiple(mesh: Mesh) -> int:
    """Returns the number that the rows of a batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
