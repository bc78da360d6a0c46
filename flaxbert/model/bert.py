"""BERT's encoder (Devlin et al. 2019) as plain NNX modules, named as the PyTorch checkpoints are.

Axis letters, here and in every einsum of the model: B rows, L query position, M key position,
D hidden, N heads, H head size, F feed-forward, V vocabulary, C classes, S sequence slots.

Note: there is no train/eval mode and no module holds a random stream. The dropout seed is an
argument; without it every dropout is the identity. Parameters are float32 (float64 when JAX's x64
is on and asked for); `dtype` is what the matrix products read, with float32 accumulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from flaxbert.model import dropout as drop
from flaxbert.model.attention import attend
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.kernels import Kernels, Projection
from flaxbert.model.matmul import dense, precision_for, stable_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """The sequence number (0 = padding) and the position of each token.

    Attention and dropout masks depend on these and on the update's dropout seed (None: no dropout),
    never on the token's index in its row.
    """

    sequence_ids: Int[Array, "B L"]
    position_ids: Int[Array, "B L"]
    seed: UInt32[Array, ""] | None

    def bits(self, layer: int | Int[Array, ""], site: int) -> UInt32[Array, "B L"] | None:
        if self.seed is None:
            return None
        return drop.token_bits(self.seed, layer, site, self.sequence_ids, self.position_ids)

    def at(self, positions: Int[Array, "B S"]) -> Places:
        """Returns the places of the tokens at some indices of each row."""
        return Places(
            jnp.take_along_axis(self.sequence_ids, positions, axis=1),
            jnp.take_along_axis(self.position_ids, positions, axis=1),
            self.seed,
        )


def _gelu(x: Array) -> Array:
    """The exact GELU in PyTorch's form; jax.nn.gelu uses erfc, 2.5 times as slow on XLA:CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.asarray(0.5**0.5, x.dtype)))


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _gelu_fast(x: Array) -> Array:
    """The tanh form with a constant of ten digits: 1e-12 from the others."""
    return 0.5 * x * (1 + jnp.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


# The functions of PyTorch's `ACT2FN`; each is one object, as it is a static argument of kernels.
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_10": lambda x: jnp.clip(_gelu(x), -10, 10),
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_fast,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def tokens_at(x: Float[Array, "B L D"], positions: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Returns the vectors at some indices of each row.

    A one-hot product gives the same bits as a gather, and stays local when rows are sharded over
    devices; a gather along a sharded batch, and its gradient, do not.
    """
    one_hot = jax.nn.one_hot(positions, x.shape[1], dtype=x.dtype)
    return jnp.einsum("BSL,BLD->BSD", one_hot, x, precision=precision_for(x.dtype))


def activation_for(name: str) -> Callable[[Array], Array]:
    """Returns the function that PyTorch's `ACT2FN[name]` computes."""
    return _ACTIVATIONS[name]


class Linear(nnx.Module):
    """y = x W + b, with inputs in the compute dtype and at least float32 accumulation."""

    def __init__(
        self, inputs: int, outputs: int, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs
    ) -> None:
        init = nnx.initializers.normal(config.initializer_range)
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), stable_dtype(dtype)))
        self.bias = nnx.Param(jnp.zeros((outputs,), stable_dtype(dtype)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*T I"]) -> Float[Array, "*T O"]:
        """Returns at least float32; the caller casts where it stores an activation."""
        return dense(x, self.kernel[...], self.dtype) + self.bias[...]

    @property
    def projection(self) -> Projection:
        return Projection(self.kernel[...], self.bias[...])


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016): two-pass variance, in at least float32."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones((config.hidden_size,), stable_dtype(dtype)))
        self.bias = nnx.Param(jnp.zeros((config.hidden_size,), stable_dtype(dtype)))
        self.eps = config.layer_norm_eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        x = x.astype(stable_dtype(self.dtype))
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)


class Embedding(nnx.Module):
    """A lookup table. Indices must be in range: the host checks them, the device does not."""

    def __init__(self, rows: int, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.normal(config.initializer_range)
        shape = (rows, config.hidden_size)
        self.embedding = nnx.Param(init(rngs.params(), shape, stable_dtype(dtype)))

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        return self.embedding[...].at[ids].get(mode="clip")


class BertEmbeddings(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.word_embeddings = Embedding(config.vocab_size, config, dtype, rngs=rngs)
        self.position_embeddings = Embedding(
            config.max_position_embeddings, config, dtype, rngs=rngs
        )
        self.token_type_embeddings = Embedding(config.type_vocab_size, config, dtype, rngs=rngs)
        self.LayerNorm = LayerNorm(config, dtype)
        self.pad_token_id = config.pad_token_id
        self.rate = config.hidden_dropout_prob

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        places: Places,
    ) -> Float[Array, "B L D"]:
        words = self.word_embeddings(input_ids)
        if self.pad_token_id is not None:
            # torch.nn.Embedding(padding_idx=...): the padding row is read but never trained.
            is_pad = (input_ids == self.pad_token_id)[..., None]
            words = jnp.where(is_pad, jax.lax.stop_gradient(words), words)
        types = self.token_type_embeddings(token_type_ids)
        x = self.LayerNorm(words + types + self.position_embeddings(places.position_ids))
        bits = places.bits(0, drop.EMBEDDINGS)
        return x if bits is None or not self.rate else drop.dropout(x, self.rate, bits)


class BertSelfAttention(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        self.query = Linear(size, size, config, dtype, rngs=rngs)
        self.key = Linear(size, size, config, dtype, rngs=rngs)
        self.value = Linear(size, size, config, dtype, rngs=rngs)
        self.heads, self.head_size = config.num_attention_heads, config.head_size
        self.rate = config.attention_probs_dropout_prob
        self.dtype = dtype
        self.kernels: Kernels | None = None

    def __call__(
        self,
        x: Float[Array, "B L D"],
        y: Float[Array, "B M D"],
        queries: Places,
        keys: Places,
        bits: UInt32[Array, "B L"] | None,
    ) -> Float[Array, "B L D"]:
        """Tokens x attend to tokens y."""
        bits = bits if self.rate else None
        kernels = self.kernels
        if kernels is not None and x is y:
            parts = tuple(linear.projection for linear in (self.query, self.key, self.value))
            ids, positions = queries.sequence_ids, queries.position_ids
            return kernels.attention(x, parts, ids, positions, bits, self.rate, self.heads)

        def heads(linear: Linear, tokens: Array) -> Array:
            y = linear(tokens) if kernels is None else kernels.dense(tokens, linear.projection)
            return y.astype(self.dtype).reshape(*tokens.shape[:2], self.heads, self.head_size)

        context = attend(
            heads(self.query, x),
            heads(self.key, y),
            heads(self.value, y),
            query_sequences=queries.sequence_ids,
            key_sequences=keys.sequence_ids,
            key_positions=keys.position_ids,
            rate=self.rate,
            bits=bits,
        )
        return context.reshape(x.shape)


class BertResidual(nnx.Module):
    """BertSelfOutput and BertOutput: project, drop, add the input, normalise (post-LN)."""

    def __init__(
        self, inputs: int, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs
    ) -> None:
        self.dense = Linear(inputs, config.hidden_size, config, dtype, rngs=rngs)
        self.LayerNorm = LayerNorm(config, dtype)
        self.rate = config.hidden_dropout_prob
        self.kernels: Kernels | None = None

    def __call__(
        self, x: Float[Array, "B L I"], skip: Float[Array, "B L D"], bits: Array | None
    ) -> Float[Array, "B L D"]:
        bits = bits if self.rate else None
        norm = self.LayerNorm
        if self.kernels is not None:
            parts = (self.dense.projection, norm.scale[...], norm.bias[...])
            return self.kernels.residual(x, skip, *parts, bits, self.rate, norm.eps)
        y = self.dense(x)
        if bits is not None:
            y = drop.dropout(y, self.rate, bits)
        return norm(y + skip.astype(y.dtype))


class BertAttention(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.self = BertSelfAttention(config, dtype, rngs=rngs)
        self.output = BertResidual(config.hidden_size, config, dtype, rngs=rngs)


class BertIntermediate(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.dense = Linear(config.hidden_size, config.intermediate_size, config, dtype, rngs=rngs)
        self.activation = activation_for(config.hidden_act)
        self.dtype = dtype
        self.kernels: Kernels | None = None

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L F"]:
        if self.kernels is not None:
            return self.kernels.dense(x, self.dense.projection, self.activation)
        return self.activation(self.dense(x)).astype(self.dtype)


class BertLayer(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.attention = BertAttention(config, dtype, rngs=rngs)
        self.intermediate = BertIntermediate(config, dtype, rngs=rngs)
        self.output = BertResidual(config.intermediate_size, config, dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        places: Places,
        number: int | Int[Array, ""],
        only: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Returns the layer's output, at the positions `only` if given: [B, S, D]."""
        here, queries = (x, places) if only is None else (tokens_at(x, only), places.at(only))
        attention = self.attention
        with jax.named_scope("attention"):  # names for profiles and for planning/
            bits = queries.bits(number, drop.ATTENTION)
            context = attention.self(here, x, queries, places, bits)
            here = attention.output(context, here, queries.bits(number, drop.ATTENTION_OUTPUT))
        with jax.named_scope("feed_forward"):
            return self.output(self.intermediate(here), here, queries.bits(number, drop.OUTPUT))


class BertEncoder(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        count = config.num_hidden_layers
        self.layer = nnx.List([BertLayer(config, dtype, rngs=rngs) for _ in range(count)])

    def __call__(
        self, x: Float[Array, "B L D"], places: Places, only: Int[Array, "B S"] | None = None
    ) -> list[Float[Array, "B L D"]]:
        """Returns the input and every layer's output: num_hidden_layers + 1 arrays.

        With `only` the last one is [B, S, D], computed at those positions: a sequence head reads no
        others, and only keys and values of the last layer are computed for all tokens.
        """
        states = [x]
        for number, layer in enumerate(self.layer):
            last = number == len(self.layer) - 1
            states.append(_run(layer, states[-1], places, number, only if last else None))
        return states


@jax.jit
def _run(
    layer: BertLayer, x: Array, places: Places, number: Int[Array, ""], only: Array | None
) -> Array:
    """Runs a layer; its number is an array, so that all layers share one trace."""
    return layer(x, places, number, only)
