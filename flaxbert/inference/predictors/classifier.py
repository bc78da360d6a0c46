"""The sequence classifier for users: model class, and predictor for texts.

classify = flaxbert.Classifier.from_pretrained("runs/quickstart/model")
classify("a gripping, beautifully acted film")   # {"label": "positive", "score": 0.9..., ...}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokens
from flaxbert.inference.models import FlaxBertModel
from flaxbert.inference.predictor import Predictor


class FlaxBertForSequenceClassification(FlaxBertModel):
    """BERT with a pooler and a classifier: the same function as PyTorch's class of that name."""

    architecture = "BertForSequenceClassification"


class Classifier(Predictor):
    """Classifies texts, or pairs of them, with a `FlaxBertForSequenceClassification`.

    Example:
      >>> classify = Classifier.from_pretrained("runs/quickstart/model", long="head_tail")
      >>> [answer["label"] for answer in classify(["a joy", "a bore"])]
      ['positive', 'negative']
    """

    model_class = FlaxBertForSequenceClassification

    def __call__(self, inputs: Any) -> Any:
        """Classifies one text, or many.

        Args:
          inputs: a text; a list of texts; a list of pairs [(a, b), ...]; or the first and the
            second texts of pairs as two lists ([a, ...], [b, ...]).

        Returns:
          A dict for one text, else a list of them in order: {"label", "score", "probabilities"},
          for several labels a row {"labels", "probabilities"}, for a number {"value"}, for
          several of them {"values"} by name.

        Raises:
          ValueError: an input that is not a text; names its number.
        """
        if isinstance(inputs, str):
            return self([inputs])[0]
        if isinstance(inputs, tuple):
            if len(inputs) != 2 or any(isinstance(part, str) for part in inputs):
                raise ValueError(
                    "expected a text, a list, or ([first, ...], [second, ...]). Write a single "
                    "pair as [(first, second)]."
                )
            if len(inputs[0]) != len(inputs[1]):
                raise ValueError(
                    f"expected as many second texts as first ones, got {len(inputs[0])} and "
                    f"{len(inputs[1])}"
                )
            inputs = list(zip(*inputs, strict=True))
        return list(self.stream(inputs))

    def rows(self, inputs: list[Any], start: int) -> Rows:
        return _rows(*_columns(inputs, start))

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Tokenizes texts into sequences of at most max_length tokens: one each, or windows."""
        return self.encode_rows(_rows(texts, pairs)).tokens

    def logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        after_batch: Callable[[int], object] = lambda sequences: None,
    ) -> Float[np.ndarray, "N C"]:
        """Returns one row of logits per text (or pair of texts), in order."""
        return self.compute_logits(self.encode_rows(_rows(texts, pairs)), after_batch)


def _rows(texts: Sequence[str], pairs: Sequence[str] | None) -> Rows:
    pair = {} if pairs is None else {"text_pair": pairs}
    return Rows("inputs", {"text": texts, **pair}, range(len(texts)))


def _columns(inputs: list[Any], start: int) -> tuple[list[str], list[str] | None]:
    """Returns the texts, and the second texts if the inputs are pairs."""
    paired = not isinstance(inputs[0], str)
    for place, item in enumerate(inputs, start):
        texts = item if paired and isinstance(item, (tuple, list)) else [item]
        if not all(isinstance(text, str) for text in texts) or len(texts) != 1 + paired:
            kind = "a pair of texts (as the first input is)" if paired else "a text"
            raise ValueError(f"input {place}: expected {kind}, got {item!r:.80}")
    if paired:
        return [first for first, _ in inputs], [second for _, second in inputs]
    return inputs, None


PREDICTOR = Classifier
