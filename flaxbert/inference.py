"""A trained folder, ready to answer: model, tokenizer, mesh and compiled forward in one place.

Shared by `evaluate` and `predict`. The surprising thing: texts are packed here as in training, and
the answers come back in the order of the questions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxbert.classifier import FlaxBertForSequenceClassification
from flaxbert.config import Config, make_config
from flaxbert.config import Mesh as MeshConfig
from flaxbert.data.batches import Examples, inference_batches, plan_inference
from flaxbert.data.check import Labels
from flaxbert.data.tokenize import Tokenizer, resolve_max_length
from flaxbert.errors import FlaxbertError, ModelFileError
from flaxbert.loop.predict import make_forward, predict_logits
from flaxbert.loop.sharding import make_mesh, row_multiple
from flaxbert.storage.workdir import read_json
from flaxbert.tasks import problem_of, task_for


class Predictor:
    """Answers for texts with a trained folder on the devices at hand."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        max_length: int = 0,
        packing: str = "pack",
    ) -> None:
        """Loads the folder; 0 for max_length is the model's maximum.

        Raises:
          ModelFileError: the folder has no trained classifier or no tokenizer.
        """
        self.model = FlaxBertForSequenceClassification.from_pretrained(directory, dtype=dtype)
        if self.model.fresh:
            raise ModelFileError(
                f"{directory}: has no trained classifier ({', '.join(self.model.fresh)} missing). "
                "Train it first."
            )
        config = self.model.config
        assert self.model.source is not None
        self.tokenizer = Tokenizer(
            self.model.source,
            vocab_size=config.vocab_size,
            pad_token_id=config.pad_token_id,
            type_vocab_size=config.type_vocab_size,
        )
        self.max_length = resolve_max_length(max_length, config.max_position_embeddings)
        self.labels = Labels(problem_of(config.problem_type, config.num_labels), config.id2label)
        self.task = task_for(self.labels.problem)
        self._packing = packing
        self._mesh = make_mesh(MeshConfig(), config)
        self.forward = make_forward(config, mesh=self._mesh, dtype=dtype)

    def batches(self, examples: Examples) -> Iterator[dict[str, np.ndarray]]:
        """Yields the examples, packed, each exactly once."""
        plan = plan_inference(
            examples.tokens.lengths,
            row_multiple=row_multiple(self._mesh),
            packing=self._packing,
        )
        return inference_batches(examples, plan)

    def logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        stop: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "N C"]:
        """Returns one row of logits per text (or pair of texts), in order."""
        if not texts:
            return np.zeros((0, self.model.config.num_labels), np.float32)
        tokens = self.tokenizer.encode(texts, pairs, max_length=self.max_length)
        examples = Examples(tokens, np.zeros(len(texts), np.int32))
        return predict_logits(
            self.forward, self.model.params, self.batches(examples), len(texts), stop
        )

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Returns one record per text: label, score and probabilities; labels; or a value."""
        return self.task.readable(self.logits(texts, pairs), self.labels.names)


def run_config_of(directory: str | os.PathLike[str]) -> Config | None:
    """Returns the config of the run whose model/ a folder is, or None."""
    path = Path(directory).resolve().parent / "config.json"
    if not path.is_file():
        return None
    try:
        return make_config(read_json(path))
    except FlaxbertError:
        return None  # some other config.json
