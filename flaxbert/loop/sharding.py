"""The mesh of three axes ("data", "fsdp", "model") and what lies where on it.

Rows of a batch are spread over data and fsdp; parameters and moments over fsdp and model, by an
ordered table from path to PartitionSpec. The surprising thing: an unmatched parameter is an error,
so a new one cannot end up replicated by accident.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxbert.config import Mesh as MeshConfig
from flaxbert.errors import ConfigError
from flaxbert.model.config import BertConfig
from flaxbert.model.products import is_half

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
    (r"classifier/kernel$", P("fsdp", None)),
    (r"(output|pooler)/dense/bias$", P()),
    (r"LayerNorm/(scale|bias)$", P()),
    (r"classifier/bias$", P()),
)


def make_mesh(asked: MeshConfig, config: BertConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh for some devices (None: those at hand).

    Raises:
      ConfigError: sizes that do not divide the devices or the model; lists the legal ones.
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
                f"Legal sizes: {_divisors(math.gcd(dimension, len(devices)))}."
            )
    count = math.prod(sizes.values())
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
    """Returns the sharding of each leaf: parameters and moments by rule, counters everywhere."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(part.key) for part in path)
        is_parameter = name.startswith(("params/", "optimizer/mu/", "optimizer/nu/"))
        return NamedSharding(mesh, spec_for(name) if is_parameter else P())

    return jax.tree_util.tree_map_with_path(sharding, state)


def gather_tables(mesh: Mesh, params: Any) -> Any:
    """Returns the parameters with whole embedding tables on every device, for the computation.

    A lookup in a table whose features are spread over "fsdp", by rows that are spread over it too,
    makes the compiler replicate the activations; gathering the table first is what FSDP means.
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def gather(path: tuple[Any, ...], leaf: Any) -> Any:
        whole = path[-1].key == "embedding"
        return jax.lax.with_sharding_constraint(leaf, replicated(mesh)) if whole else leaf

    return jax.tree_util.tree_map_with_path(gather, params)


def has_kernels(mesh: Mesh, config: BertConfig, dtype: str) -> bool:
    """Whether model/kernels.py serves: one NVIDIA GPU (Ampere or later), half precision.

    On several devices each kernel would have to be told how its arrays are spread; no compiler
    knows.
    """
    device, size = mesh.devices.flat[0], config.head_size
    generation = str(getattr(device, "compute_capability", "")).partition(".")[0]
    served = (
        mesh.size == 1
        and device.platform == "gpu"
        and generation.isdecimal()  # not so on AMD's
        and int(generation) >= 8
        and is_half(dtype)
        and size in (16, 32, 64, 128)  # blocks are powers of two, and must fit shared memory
    )
    if not served:
        return False
    try:
        from flaxbert.model import kernels  # Pallas takes long to import
    except ImportError as error:
        said = f"this JAX has no Pallas for Triton, updates on a GPU take longer: {error}"
        warnings.warn(said, RuntimeWarning, stacklevel=2)
        return False
    return kernels.are_written()


def batch_sharding(mesh: Mesh, *, micro_batches: bool) -> NamedSharding:
    """Rows over data and fsdp; [A, R, ...] with micro-batches, else [R, ...]."""
    return NamedSharding(mesh, P(None, ROWS) if micro_batches else P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def row_multiple(mesh: Mesh) -> int:
    """Returns what the rows of a batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
