"""The base of the public model classes: BERT with a head as config, parameters, jitted forward.

    model = FlaxBertForSequenceClassification.from_pretrained("path/or/hub-id")
    output = model(input_ids, attention_mask, token_type_ids)   # output.logits: [B, C]
    model.save_pretrained("folder")                              # PyTorch loads it

There is no training mode: `key` switches dropout on. With `params=` a call is a pure function, for
`jax.grad` and optax (docs/library.md).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from flaxbert.data.tokenizer_files import files_in
from flaxbert.heads import Params, bind, head_of
from flaxbert.model.bert_config import BertConfig
from flaxbert.storage.parameters import description_of
from flaxbert.weights.folder import read_config, read_model, with_labels, write_model
from flaxbert.weights.resolve import resolve_model

# Arguments of transformers 4's Flax classes that are different here.
_INSTEAD = {
    "train": "pass key=KEY for dropout, and no key for none",
    "dropout_rng": "pass key=KEY for dropout, and no key for none",
    "return_dict": "the output has names, as output.logits",
}

DTYPES = ("float32", "bfloat16", "float64")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassifierOutput:
    """The output of a model.

    Attributes:
      logits: [B, C]; [R, S, C] with cls_positions; [B, L, C] of a token classifier.
      hidden_states: the embeddings' output and every layer's, each [B, L, D], or None.
    """

    logits: Float[Array, "... C"]
    hidden_states: tuple[Float[Array, "B L D"], ...] | None = None


class FlaxBertModel:
    """BERT with a head; the base of the public model classes.

    Attributes:
      config: the `BertConfig`.
      params: nested dict of float32 arrays with string keys (see `flaxbert.weights.table`).
      dtype: compute dtype; parameters and logits are at least float32.
      notes: what loading had to initialise, drop or ignore, one line each.
      fresh: PyTorch names of the parameters that were initialised, not loaded.
      source: the folder that the model was read from, or None.
      revision: the resolved hub commit, "" for a folder.
    """

    architecture: ClassVar[str]  # transformers' class

    def __init__(
        self,
        config: BertConfig,
        params: Params,
        *,
        dtype: str = "float32",
        source: Path | None = None,
        revision: str = "",
        notes: Sequence[str] = (),
        fresh: Sequence[str] = (),
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        if dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError("dtype float64 needs jax_enable_x64")
        stored = jnp.promote_types(dtype, jnp.float32)
        self.config = config
        self.params: Params = jax.tree.map(lambda leaf: jnp.asarray(leaf, stored), params)
        self.dtype = dtype
        self.source = source
        self.revision = revision
        self.notes = tuple(notes)
        self.fresh = tuple(fresh)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        num_labels: int | None = None,
        id2label: Sequence[str] | dict[int, str] | dict[str, str] | None = None,
        problem_type: str | None = None,
        revision: str = "",
        dtype: str = "float32",
        seed: int = 0,
    ) -> Self:
        """Loads a folder, gs://bucket/folder, a hub id or "embedded:minilm".

        Args:
          path_or_id: where the model is.
          num_labels: number of labels, if it differs from the checkpoint's; the head is then new.
          id2label: names in label-id order, or {id: name}; implies num_labels.
          problem_type: as in transformers; None keeps the checkpoint's.
          revision: hub revision (branch, tag or commit).
          dtype: compute dtype, "float32", "bfloat16" or (with jax_enable_x64) "float64".
          seed: for the initial values of a new pooler or head.

        Raises:
          ModelFileError: (an OSError) no such model, or inconsistent files.
          ValueError: arguments that exclude each other.
        """
        directory, resolved = resolve_model(path_or_id, revision)
        config, ignored = read_config(directory)
        names = _label_names(config, num_labels, id2label)
        config = with_labels(config, names, problem_type, cls.architecture)
        chosen = num_labels is not None or id2label is not None
        loaded = read_model(directory, config, seed, ignored, keep_head=not chosen)
        return cls(
            loaded.config,
            loaded.params,
            dtype=dtype,
            source=description_of(directory),
            revision=resolved,
            notes=loaded.notes,
            fresh=loaded.fresh,
        )

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        sequence_ids: Any = None,
        cls_positions: Any = None,
        params: Params | None = None,
        key: jax.Array | None = None,
        output_hidden_states: bool = False,
        **unknown: Any,
    ) -> ClassifierOutput:
        """Computes logits for token ids; a pure function of its arguments if `params` is given.

        Args:
          input_ids: [B, L] token ids.
          attention_mask: [B, L], 1 = a token, 0 = padding; None = no padding.
          token_type_ids: [B, L]; None = zeros.
          position_ids: [B, L]; None = 0..L-1 in each row.
          sequence_ids: [B, L] for packed rows: tokens attend where these are equal, 0 = padding.
            Excludes attention_mask.
          cls_positions: [B, S] first token of each packed sequence; None = the row's first token.
          params: a tree like `self.params`; None = `self.params`.
          key: a JAX PRNG key for dropout; None = no dropout.
          output_hidden_states: whether to return hidden states.

        Raises:
          ValueError: inconsistent shapes, or indices outside of the model's tables, which a device
            would silently clamp.
          TypeError: an unknown argument; for those of transformers 4 it names the replacement.
        """
        for name in unknown:
            instead = _INSTEAD.get(name, "there is no such argument")
            raise TypeError(f"{type(self).__name__}: {name}=: {instead}")
        if attention_mask is not None and sequence_ids is not None:
            raise ValueError("attention_mask and sequence_ids exclude each other")
        config = self.config
        ids = _indices("input_ids", input_ids, config.vocab_size)
        if ids.ndim != 2:
            raise ValueError(f"input_ids: expected [B, L], got shape {ids.shape}")
        rows, length = shape = ids.shape
        types = _indices("token_type_ids", token_type_ids, config.type_vocab_size, shape, 0)
        counted = np.arange(length)
        maximum = config.max_position_embeddings
        positions = _indices("position_ids", position_ids, maximum, shape, counted)
        if sequence_ids is None:
            mask = _indices("attention_mask", attention_mask, 2, shape, 1)
            # Numbered by row, so that dropout with a key differs from row to row.
            sequences = jnp.where(mask != 0, jnp.arange(1, rows + 1, dtype=jnp.int32)[:, None], 0)
        else:
            sequences = _indices("sequence_ids", sequence_ids, 2**31, shape)
        packed = cls_positions is not None
        cls_at = _indices("cls_positions", cls_positions, length, None if packed else (rows, 1), 0)
        if cls_at.ndim != 2 or cls_at.shape[0] != rows:
            raise ValueError(f"cls_positions: expected [{rows}, S], got shape {cls_at.shape}")
        seed = None if key is None else jax.random.bits(key, dtype=jnp.uint32)
        logits, states = _forward(
            config,
            self.dtype,
            output_hidden_states,
            self.params if params is None else params,
            (ids, types, positions, sequences, cls_at),
            seed,
        )
        by_token = head_of(config).layout == "token"
        return ClassifierOutput(logits if packed or by_token else logits[:, 0], states)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes config.json, model.safetensors (float32) and the source's tokenizer files."""
        write_model(Path(directory), self.config, self.params, self.tokenizer_files())

    def tokenizer_files(self) -> list[Path]:
        """Returns the tokenizer files of the folder that this model was read from."""
        return [] if self.source is None else files_in(self.source)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(
    config: BertConfig,
    dtype: str,
    with_states: bool,
    params: Params,
    inputs: tuple[jax.Array, ...],
    seed: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
    model = bind(config, params, dtype)
    if not with_states:
        return model(*inputs, seed), None
    logits, states = model.with_states(*inputs, seed)
    return logits, tuple(states)


def _label_names(
    config: BertConfig,
    num_labels: int | None,
    id2label: Sequence[str] | dict[int, str] | dict[str, str] | None,
) -> tuple[str, ...] | None:
    if id2label is not None:
        if isinstance(id2label, str):
            raise ValueError(f"id2label: expected a list of names, got {id2label!r}")
        if isinstance(id2label, dict):
            numbered = {int(i): name for i, name in id2label.items()}
            if sorted(numbered) != list(range(len(numbered))):
                raise ValueError(f"id2label: expected ids 0..n-1, got {sorted(numbered)}")
            names = tuple(numbered[i] for i in range(len(numbered)))
        else:
            names = tuple(id2label)
        if num_labels is not None and num_labels != len(names):
            raise ValueError(f"num_labels={num_labels} but id2label has {len(names)} names")
        return names
    if num_labels is None or num_labels == config.num_labels:
        return None
    if num_labels < 1:
        raise ValueError(f"num_labels: expected at least 1, got {num_labels}")
    return tuple(f"LABEL_{i}" for i in range(num_labels))


def _indices(
    name: str, values: Any, size: int, shape: tuple[int, ...] | None = None, default: Any = None
) -> jax.Array:
    """Returns int32 indices below `size`, or the default where nothing was given.

    They are checked before the cast: int32 would turn 2**32 + 5 into 5.

    """
    if values is None and default is not None and shape is not None:
        values = np.broadcast_to(np.asarray(default), shape)
    try:
        array = values if isinstance(values, jax.Array) else np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: expected an array of integers: {error}") from error
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise ValueError(f"{name}: expected integers, got dtype {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} as input_ids, got {array.shape}")
    if not isinstance(array, Tracer) and array.size:  # inside jit there are no values
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= size:
            raise ValueError(f"{name}: expected values from 0 to {size - 1}, got {low} to {high}")
    return jnp.asarray(array, jnp.int32)
