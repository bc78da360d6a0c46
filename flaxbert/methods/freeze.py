"""Trains a part of the model: the head, and with it biases (BitFit, Ben Zaken et al. 2022, arXiv
2106.10199), LayerNorms, or all layers above the lowest ones.

The pooler counts as head: nothing else reads it, and if a checkpoint has none it is initialised.
"""

from __future__ import annotations

import dataclasses
import re

from flaxbert.errors import ConfigError
from flaxbert.methods import Method
from flaxbert.model.bert_config import BertConfig


@dataclasses.dataclass(frozen=True)
class Options:
    trained: str = "head"  # the head alone, or also every bias, every LayerNorm (norm), or all
    layers: int = -1  # lowest layers to freeze, with the embeddings; 0 = embeddings only, -1 = none


CHOICES = {"trained": ("head", "bias", "norm", "all")}
RANGES = {"layers": (-1, 1000, True)}

_BELOW_THE_HEAD = {"head": r"(?!)", "bias": r"/bias$", "norm": r"/LayerNorm/", "all": r""}


@dataclasses.dataclass(frozen=True)
class Freeze(Method):
    options: Options

    def is_trained(self, path: str) -> bool:
        if not path.startswith(("bert/embeddings/", "bert/encoder/")):
            return True
        layer = re.match(r"bert/encoder/layer/(\d+)/", path)
        place = int(layer[1]) if layer else -1  # embeddings are below all layers
        chosen = re.search(_BELOW_THE_HEAD[self.options.trained], path)
        return place >= self.options.layers and chosen is not None


def make(options: Options, bert: BertConfig) -> Method:
    trained, layers = options.trained, options.layers
    if layers > bert.num_hidden_layers:
        raise ConfigError(
            f"config.method.freeze.layers={layers}: the model has {bert.num_hidden_layers} layers."
        )
    if trained == "head" and layers >= 0:
        raise ConfigError(
            f"config.method.freeze.layers={layers} has no effect: config.method.freeze.trained is "
            "'head'."
        )
    if trained == "all" and layers < 0:
        raise ConfigError(
            "config.method.freeze: nothing is frozen. Set config.method.freeze.layers, or "
            "config.method.name=full."
        )
    return Freeze(options)
