"""What the parity tests compare: a grid of models, their weights and inputs, and golden outcomes.

PyTorch's side is either live (tests/torch_reference.py, Python 3.11) or golden: what it computed
when tests/golden/make_torch.py ran, for every Python line. Note: weights and inputs are not stored.
They come from the raw bits of PCG64, which NumPy promises never to change, and the golden files
keep their digest.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.model.bert_config import BertConfig
from flaxbert.model.binding import Params
from flaxbert.weights.table import assemble, entries

GOLDEN = Path(__file__).parent / "golden"
NO_TORCH = (
    "PyTorch, the live reference, is pinned for Python 3.11 (elsewhere pip would bring gigabytes "
    "of CUDA); what it computed is compared in "
)

Arrays = dict[str, np.ndarray]

# The grid: activations, eps, token types, labels, odd sizes, depth, wide initial weights.
GRID: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu_new, 7 labels, eps 1e-5": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "labels": 7},
    "tanh gelu, 1 label, 1 type": {
        "hidden_act": "gelu_pytorch_tanh",
        "type_vocab_size": 1,
        "labels": 1,
    },
    "relu, 16 types, wide init": {
        "hidden_act": "relu",
        "type_vocab_size": 16,
        "initializer_range": 0.3,
    },
    "silu, odd sizes, 3 layers": {
        "hidden_act": "silu",
        "num_hidden_layers": 3,
        "hidden_size": 33,
        "num_attention_heads": 3,
        "intermediate_size": 41,
        "vocab_size": 101,
    },
    "1 layer, wide init, 1 head": {
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "initializer_range": 0.3,
        "labels": 7,
    },
}
# Too large for a golden file: compared with live PyTorch only.
DEEP = {
    "hidden_act": "silu",
    "num_hidden_layers": 12,
    "hidden_size": 63,
    "num_attention_heads": 3,
    "intermediate_size": 101,
    "vocab_size": 101,
}
LENGTHS = [3, 17, 9, 30, 1]
EMBEDDED_LENGTHS = [12, 30, 7, 21]


def config_for(*, labels: int = 2, **changes: Any) -> BertConfig:
    """Returns the config of a tiny model without dropout, as the grid changes it."""
    values = {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": tuple(f"LABEL_{number}" for number in range(labels)),
        **changes,
    }
    return BertConfig(**values)


def embedded_config() -> BertConfig:
    """Returns the embedded checkpoint's config, without dropout and with two labels."""
    from flaxbert.storage.embedded import minilm_directory
    from flaxbert.weights.folder import read_config

    config, _ = read_config(minilm_directory())
    return dataclasses.replace(
        config,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=("LABEL_0", "LABEL_1"),
    )


def _uniform(seed: int, count: int) -> np.ndarray:
    """Returns `count` numbers in [0, 1), multiples of 2**-24: the same ones everywhere."""
    return (np.random.PCG64(seed).random_raw(count) >> np.uint64(40)) / 2.0**24


def random_arrays(config: BertConfig, seed: int = 0) -> Arrays:
    """Returns {PyTorch name: float32 array}, biases and norms random too: every parameter counts.

    Uniform, with the standard deviation `initializer_range`; LayerNorm scales lie around 1.
    """
    arrays = {}
    for entry in entries(config):
        number = zlib.crc32(entry.name.encode()) + seed
        values = _uniform(number, int(np.prod(entry.shape))).reshape(entry.shape) - 0.5
        centre = 1.0 if entry.name.endswith("LayerNorm.weight") else 0.0
        arrays[entry.name] = (centre + values * 12**0.5 * config.initializer_range).astype("f4")
    return arrays


def embedded_arrays() -> Arrays:
    """Returns the embedded checkpoint's parameters under PyTorch's names, with a random head."""
    from safetensors.numpy import load_file

    from flaxbert.storage.embedded import minilm_directory

    stored = load_file(minilm_directory() / "model.safetensors")
    arrays = {f"bert.{n}": a for n, a in stored.items() if not n.endswith("position_ids")}
    head = random_arrays(embedded_config())
    return {**arrays, **{n: a for n, a in head.items() if n.startswith("classifier.")}}


def params_for(config: BertConfig, arrays: Arrays) -> Params:
    """Returns PyTorch's arrays in our tree, float32."""
    return assemble(config, arrays, "test").params


@dataclasses.dataclass(frozen=True)
class Sentences:
    """A padded batch of random sentences of different lengths, with labels."""

    input_ids: np.ndarray  # [B, L]
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray  # [B]


def sentences(
    config: BertConfig, lengths: list[int], seed: int = 0, *, width: int | None = None
) -> Sentences:
    shape = (len(lengths), width or max(lengths))
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int32)

    def integers(what: int, below: int) -> np.ndarray:
        numbers = _uniform(3 * seed + what, shape[0] * shape[1]).reshape(shape) * below
        return numbers.astype(np.int32)

    # Token id 0 is [PAD]: let it occur as a real token too, its embedding must not be trained.
    ids = integers(0, config.vocab_size) * mask
    types = integers(1, config.type_vocab_size) * mask
    return Sentences(ids, mask, types, integers(2, config.num_labels)[:, 0])


def digest(*arrays: Any) -> str:
    """Returns SHA-256 over arrays, or dicts of them in the order of their names."""
    sha = hashlib.sha256()
    for item in arrays:
        parts = [item[name] for name in sorted(item)] if isinstance(item, dict) else [item]
        for part in parts:
            array = np.ascontiguousarray(part)
            sha.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return sha.hexdigest()


# --- outcomes -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a model computes for a batch: float64 arrays, whatever they were computed in."""

    states: list[np.ndarray]  # per layer, embeddings first: [real tokens, D]
    logits: np.ndarray  # [B, C]
    gradients: Arrays  # by PyTorch name

    def sampled(self, lengths: list[int]) -> Outcome:
        """Returns the first token's states and some elements of each gradient: small to store."""
        first = np.cumsum([0, *lengths[:-1]])
        gradients = {name: sample(array) for name, array in self.gradients.items()}
        return Outcome([state[first] for state in self.states], self.logits, gradients)


def sample(array: np.ndarray, count: int = 64) -> np.ndarray:
    """Returns elements from the whole of an array: the largest and some at equal distances."""
    flat = array.reshape(-1)
    return np.append(flat[np.linspace(0, flat.size - 1, count).astype(int)], np.abs(flat).max())


def norm(gradients: Arrays) -> float:
    """Returns the global norm."""
    return float(np.sqrt(sum(np.sum(np.square(g, dtype="f8")) for g in gradients.values())))


def float32_errors(outcome: Outcome, exact: Outcome) -> np.ndarray:
    """Returns the errors of one outcome: each layer's states, logits, global gradient."""
    pairs = zip([*outcome.states, outcome.logits], [*exact.states, exact.logits], strict=True)
    difference = {n: outcome.gradients[n] - exact.gradients[n] for n in exact.gradients}
    gradient = norm(difference) / norm(exact.gradients)
    return np.array([*(np.abs(ours - theirs).max() for ours, theirs in pairs), gradient])


def pack_outcome(name: str, outcome: Outcome, errors: np.ndarray, inputs: str) -> Arrays:
    """Returns an outcome as entries of an .npz file."""
    return {
        f"{name}/inputs": np.array(inputs),
        f"{name}/states": np.stack(outcome.states),
        f"{name}/logits": outcome.logits,
        f"{name}/float32_errors": errors,
        **{f"{name}/gradients/{n}": array for n, array in outcome.gradients.items()},
    }


def golden_outcome(file: str, name: str, inputs: str) -> tuple[Outcome, np.ndarray]:
    """Returns PyTorch's float64 outcome and its float32 errors, as they were written."""
    golden = load_golden(file)
    assert str(golden[f"{name}/inputs"]) == inputs, f"{name}: other inputs than {file}.npz has"
    prefix = f"{name}/gradients/"
    gradients = {n.removeprefix(prefix): a for n, a in golden.items() if n.startswith(prefix)}
    states, logits = list(golden[f"{name}/states"]), golden[f"{name}/logits"]
    return Outcome(states, logits, gradients), golden[f"{name}/float32_errors"]


@functools.cache
def load_golden(file: str) -> Arrays:
    """Returns the arrays of tests/golden/<file>.npz."""
    return dict(np.load(GOLDEN / f"{file}.npz"))
