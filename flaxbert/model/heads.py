"""Pooler and sequence classifier on top of the encoder, and the module tree as plain dicts.

The surprising thing: a row may hold several sequences, so the pooler reads each sequence's first
token at `cls_positions`, never `hidden[:, 0]`.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from flaxbert.model import dropout as drop
from flaxbert.model.bert import BertEmbeddings, BertEncoder, Linear, Places, tokens_at
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.kernels import Kernels

# Nested dict of arrays with string keys only; layer numbers are decimal strings.
Params = dict[str, Any]

# Keys of a batch, in the order of the arguments of BertForSequenceClassification.__call__.
INPUTS = ("input_ids", "token_type_ids", "position_ids", "sequence_ids", "cls_positions")


class BertPooler(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size, config, dtype, rngs=rngs)

    def __call__(self, first: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return jnp.tanh(self.dense(first))


class BertModel(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.embeddings = BertEmbeddings(config, dtype, rngs=rngs)
        self.encoder = BertEncoder(config, dtype, rngs=rngs)
        self.pooler = BertPooler(config, dtype, rngs=rngs)


class BertForSequenceClassification(nnx.Module):
    """The module behind the public classifier; packed rows in, one logit vector per slot out."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.bert = BertModel(config, dtype, rngs=rngs)
        self.classifier = Linear(config.hidden_size, config.num_labels, config, dtype, rngs=rngs)
        self.rate = config.head_dropout

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        cls_positions: Int[Array, "B S"],
        seed: UInt32[Array, ""] | None = None,
    ) -> Float[Array, "B S C"]:
        """Returns the logits, at least float32.

        `seed` is the update's dropout seed; None computes without dropout. `sequence_ids` are the
        sequences' numbers in the whole update, 0 = padding.
        """
        places = Places(sequence_ids, position_ids, seed)
        with jax.named_scope("embeddings"):  # names for profiles and for planning/
            x = self.bert.embeddings(input_ids, token_type_ids, places)
        first = self.bert.encoder(x, places, cls_positions)[-1]
        with jax.named_scope("head"):
            return self.head(first, places.at(cls_positions))

    def with_states(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        cls_positions: Int[Array, "B S"],
        seed: UInt32[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B S C"], list[Float[Array, "B L D"]]]:
        """Returns the logits and all hidden states (embeddings first) at every position."""
        places = Places(sequence_ids, position_ids, seed)
        x = self.bert.embeddings(input_ids, token_type_ids, places)
        states = self.bert.encoder(x, places)
        first = tokens_at(states[-1], cls_positions)
        return self.head(first, places.at(cls_positions)), states

    def head(self, first: Float[Array, "B S D"], places: Places) -> Float[Array, "B S C"]:
        """Returns the logits of the first tokens of sequences."""
        pooled = self.bert.pooler(first)
        bits = places.bits(0, drop.POOLED)
        if bits is not None and self.rate:
            pooled = drop.dropout(pooled, self.rate, bits)
        return self.classifier(pooled)


@functools.lru_cache(maxsize=64)
def _abstract(config: BertConfig, dtype: str, kernels: Kernels | None = None) -> tuple[Any, Any]:
    """Splits an abstract model into its structure and its parameters' shapes (no memory used)."""
    model = nnx.eval_shape(
        lambda: BertForSequenceClassification(config, jnp.dtype(dtype), rngs=nnx.Rngs(0))
    )
    model.bert.encoder.set_attributes(kernels=kernels)  # the head's few products stay as they are
    graphdef, state = nnx.split(model)
    return graphdef, _string_keys(nnx.to_pure_dict(state))


def abstract_params(config: BertConfig, dtype: str = "float32") -> Params:
    """Returns the parameter tree with a `jax.ShapeDtypeStruct` at each leaf."""
    return _abstract(config, str(jnp.dtype(dtype)))[1]


def init_params(
    config: BertConfig, seed: int, dtype: str = "float32", paths: tuple[str, ...] | None = None
) -> Params:
    """Returns fresh parameters: normal(0, initializer_range), zero biases, unit LayerNorms.

    With `paths`, like "classifier/kernel", only these: {path: array}. No other is drawn.
    """
    return _init(config, str(jnp.dtype(dtype)), paths, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init(config: BertConfig, dtype: str, paths: tuple[str, ...] | None, key: jax.Array) -> Params:
    model = BertForSequenceClassification(config, jnp.dtype(dtype), rngs=nnx.Rngs(params=key))
    params = _string_keys(nnx.to_pure_dict(nnx.state(model)))
    if paths is None:
        return params
    return {path: functools.reduce(operator.getitem, path.split("/"), params) for path in paths}


def bind(
    config: BertConfig, params: Params, dtype: str = "float32", kernels: Kernels | None = None
) -> Any:
    """Returns the module that computes with `params`; cheap, to be called inside `jax.jit`.

    `kernels` are those of the device: see `loop.sharding.kernels_for`.
    """
    graphdef, _ = _abstract(config, str(jnp.dtype(dtype)), kernels)
    return nnx.merge(graphdef, _module_keys(params))


def _string_keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(name): _string_keys(value) for name, value in tree.items()}
    return tree


def _module_keys(tree: Any) -> Any:
    """NNX numbers the items of a list with ints; everything outside of NNX uses strings."""
    if isinstance(tree, dict):
        return {
            int(name) if name.isdecimal() else name: _module_keys(value)
            for name, value in tree.items()
        }
    return tree
