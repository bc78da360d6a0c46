"""The weights of the golden files: a formula, so that readers and writers need share no file.

Imports NumPy alone: the generators run with libraries, and Pythons, that this project does not use.
"""

from __future__ import annotations

import zlib

import numpy as np

# As transformers' BertConfig takes it; eleven layers, so that "10" sorts before "2" as text.
CONFIG = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DEEP = CONFIG | {"num_hidden_layers": 11}
LABELS = ("no", "perhaps", "yes")


def golden(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 parameter of this PyTorch name and shape, values in [-0.5, 0.5)."""
    numbers = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (numbers * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) % 2**24
    return (mixed.astype(np.float64) / 2**24 - 0.5).astype(np.float32).reshape(shape)
