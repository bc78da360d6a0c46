"""BertModel (embeddings, encoder, and the pooler for heads that use it), and the base of all heads.

A row may hold several sequences, so the pooler reads the first token of each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from flaxbert.model.bert import BertEmbeddings, BertEncoder, Linear, Places, tokens_at
from flaxbert.model.bert_config import BertConfig

# Keys of a batch that a model reads, in the order of the arguments of BertWithHead.__call__.
INPUTS = ("input_ids", "token_type_ids", "position_ids", "sequence_ids", "cls_positions")


class BertPooler(nnx.Module):
    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size, config, dtype, rngs=rngs)

    def __call__(self, first: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return jnp.tanh(self.dense(first))


class BertModel(nnx.Module):
    """The encoder of every head; transformers' class of that name."""

    def __init__(
        self, config: BertConfig, dtype: jnp.dtype, *, pooler: bool, rngs: nnx.Rngs
    ) -> None:
        self.embeddings = BertEmbeddings(config, dtype, rngs=rngs)
        self.encoder = BertEncoder(config, dtype, rngs=rngs)
        if pooler:
            self.pooler = BertPooler(config, dtype, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        places: Places,
        only: Int[Array, "B S"] | None = None,
    ) -> list[Float[Array, "B L D"]]:
        """Returns the embeddings' output and that of every layer.

        With `only` the last one is [B, S, D], computed at those positions alone.
        """
        with jax.named_scope("embeddings"):  # names for profiles and for planning/
            x = self.embeddings(input_ids, token_type_ids, places)
        return self.encoder(x, places, only)


class BertWithHead(nnx.Module):
    """The base of every head's module: maps packed rows to logits.

    A subclass sets `bert` and its own layers, and defines `head`.
    """

    # Whether the head reads only the first token of each sequence; the last layer then computes no
    # others.
    first_only = True

    bert: BertModel

    def head(self, states: Float[Array, "B T D"], places: Places) -> Float[Array, "B T C"]:
        """Returns the logits for the last layer's states at the tokens in `places`."""
        raise TypeError(f"{type(self).__name__} defines no head")

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        cls_positions: Int[Array, "B S"],
        seed: UInt32[Array, ""] | None = None,
    ) -> Float[Array, "B T C"]:
        """Returns the logits, at least float32: [B, S, C] of sequences or [B, L, C] of tokens.

        `seed` is the update's dropout seed; None computes without dropout. `sequence_ids` are the
        sequences' numbers in the whole update, 0 = padding.
        """
        places = Places(sequence_ids, position_ids, seed)
        only = cls_positions if self.first_only else None
        last = self.bert(input_ids, token_type_ids, places, only)[-1]
        with jax.named_scope("head"):
            return self.head(last, places if only is None else places.at(only))

    def with_states(
        self,
        input_ids: Int[Array, "B L"],
        token_type_ids: Int[Array, "B L"],
        position_ids: Int[Array, "B L"],
        sequence_ids: Int[Array, "B L"],
        cls_positions: Int[Array, "B S"],
        seed: UInt32[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T C"], list[Float[Array, "B L D"]]]:
        """Returns the logits and all hidden states (embeddings first) at every position."""
        places = Places(sequence_ids, position_ids, seed)
        states = self.bert(input_ids, token_type_ids, places)
        if not self.first_only:
            return self.head(states[-1], places), states
        first = tokens_at(states[-1], cls_positions)
        return self.head(first, places.at(cls_positions)), states
