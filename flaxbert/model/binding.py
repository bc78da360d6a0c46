"""Converts between NNX modules and parameters as plain nested dicts.

Outside of NNX parameters are a dict of arrays with string keys only: layer numbers are decimal
strings. A module class is called as `module(config, dtype, rngs=...)`; its encoder is `bert`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flaxbert.model.bert_config import BertConfig
from flaxbert.model.kernels import Kernels

# Nested dict of arrays.
Params = dict[str, Any]
Module = Callable[..., Any]


@functools.lru_cache(maxsize=64)
def _abstract(
    module: Module, config: BertConfig, dtype: str, kernels: Kernels | None = None
) -> tuple[Any, Any]:
    """Splits an abstract model into its structure and its parameters' shapes (no memory used)."""
    model = nnx.eval_shape(lambda: module(config, jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    model.bert.encoder.set_attributes(kernels=kernels)  # not for the head's few products
    graphdef, state = nnx.split(model)
    return graphdef, _string_keys(nnx.to_pure_dict(state))


def abstract_params(module: Module, config: BertConfig, dtype: str = "float32") -> Params:
    """Returns the parameter tree with a `jax.ShapeDtypeStruct` at each leaf."""
    return _abstract(module, config, str(jnp.dtype(dtype)))[1]


def init_params(
    module: Module,
    config: BertConfig,
    seed: int,
    dtype: str = "float32",
    paths: tuple[str, ...] | None = None,
) -> Params:
    """Returns fresh parameters: normal(0, initializer_range), zero biases, unit LayerNorms.

    With `paths`, like "classifier/kernel", it draws and returns only these: {path: array}.
    """
    return _init(module, config, str(jnp.dtype(dtype)), paths, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _init(
    module: Module, config: BertConfig, dtype: str, paths: tuple[str, ...] | None, key: jax.Array
) -> Params:
    model = module(config, jnp.dtype(dtype), rngs=nnx.Rngs(params=key))
    params = _string_keys(nnx.to_pure_dict(nnx.state(model)))
    if paths is None:
        return params
    return {path: functools.reduce(operator.getitem, path.split("/"), params) for path in paths}


def bind(
    module: Module,
    config: BertConfig,
    params: Params,
    dtype: str = "float32",
    kernels: Kernels | None = None,
) -> Any:
    """Returns the module with these parameters; cheap, to be called inside `jax.jit`.

    `kernels` are those of the device: see `loop.mesh.kernels_for`.
    """
    graphdef, _ = _abstract(module, config, str(jnp.dtype(dtype)), kernels)
    return nnx.merge(graphdef, _module_keys(params))


def _string_keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(name): _string_keys(value) for name, value in tree.items()}
    return tree


def _module_keys(tree: Any) -> Any:
    """Turns layer numbers into ints, which NNX uses for the items of a list."""
    if isinstance(tree, dict):
        return {
            int(name) if name.isdecimal() else name: _module_keys(value)
            for name, value in tree.items()
        }
    return tree
