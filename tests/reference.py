"""PyTorch BERT as the reference: random models from a config, and batches for both sides."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import transformers

from flaxbert.model.config import BertConfig
from flaxbert.model.heads import Params
from flaxbert.weights.table import assemble

# The grid: activations, eps, token types, labels, odd sizes, depth, wide initial weights.
GRID: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu_new, 3 labels, eps 1e-5": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "labels": 7},
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
    "silu, odd sizes, 12 layers": {
        "hidden_act": "silu",
        "num_hidden_layers": 12,
        "hidden_size": 63,
        "num_attention_heads": 3,
        "intermediate_size": 101,
        "vocab_size": 101,
    },
    "1 layer, wide init, 1 head": {
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "initializer_range": 0.3,
        "labels": 7,
    },
}


def torch_config(**changes: Any) -> transformers.BertConfig:
    labels = changes.pop("labels", 2)
    values = {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": labels,
        **changes,
    }
    config = transformers.BertConfig(**values)
    config._attn_implementation = "eager"
    return config


def torch_model(seed: int = 0, **changes: Any) -> transformers.BertForSequenceClassification:
    """A random model in float64; biases and norms random too, so that every parameter counts."""
    torch.manual_seed(seed)
    config = torch_config(**changes)
    model = transformers.BertForSequenceClassification(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, config.initializer_range)
            elif "LayerNorm" in name:
                parameter.normal_(1, config.initializer_range)
    return model.eval()


def our_config(config: transformers.BertConfig) -> BertConfig:
    ours, unknown = BertConfig.from_dict(config.to_dict())
    assert not unknown, unknown
    return ours


def arrays_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def our_params(model: torch.nn.Module, config: BertConfig) -> Params:
    """The model's parameters in our tree. float64 values survive only if they are float32 ones."""
    return assemble(config, arrays_of(model), "test").params


def round_to_float32(model: torch.nn.Module) -> None:
    """Makes a float64 model hold exactly what float32 files hold."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.float().double())


@dataclasses.dataclass(frozen=True)
class Sentences:
    """A padded batch of random sentences of different lengths, with labels."""

    input_ids: np.ndarray  # [B, L]
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray  # [B]

    def torch(self) -> dict[str, torch.Tensor]:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: torch.tensor(getattr(self, name)).long() for name in names}


def sentences(
    config: BertConfig, lengths: list[int], seed: int = 0, *, width: int | None = None
) -> Sentences:
    random = np.random.default_rng(seed)
    shape = (len(lengths), width or max(lengths))
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
    # Token id 0 is [PAD]: let it occur as a real token too, its embedding must not be trained.
    ids = random.integers(0, config.vocab_size, shape).astype(np.int32) * mask
    types = random.integers(0, config.type_vocab_size, shape).astype(np.int32) * mask
    labels = random.integers(0, config.num_labels, len(lengths)).astype(np.int32)
    return Sentences(ids, mask, types, labels)
