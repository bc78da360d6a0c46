"""The token classifier for users: model class, and predictor of tags and entities.

tag = flaxbert.TokenClassifier.from_pretrained("runs/ner/model")
tag(["EU", "rejects", "German", "call"])   # {"tags": ["B-ORG", "O", ...], "entities": [...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flaxbert.data.rows import Rows
from flaxbert.inference.models import FlaxBertModel
from flaxbert.inference.predictor import Predictor


class FlaxBertForTokenClassification(FlaxBertModel):
    """BERT with a classifier on every token: the same function as PyTorch's class of that name.

    Logits are [B, L, C], padding included.
    """

    architecture = "BertForTokenClassification"


class TokenClassifier(Predictor):
    """Tags words and finds entities with a `FlaxBertForTokenClassification`.

    Every word gets exactly one tag, in texts of any length: long ones are read in overlapping
    windows. A plain text is split at white space, and punctuation around a word is a separate word.

    Example:
      >>> tag = TokenClassifier.from_pretrained("runs/ner/model")
      >>> [entity["text"] for entity in tag("Angela Merkel visits Paris.")["entities"]]
      ['Angela Merkel', 'Paris']
    """

    model_class = FlaxBertForTokenClassification

    def __call__(self, inputs: str | Sequence[Any]) -> Any:
        """Tags one text, one list of words, or a list of texts or of lists of words.

        Returns:
          A dict for one, else a list of them in order: {"words", "tags", "scores"} and, unless the
          tags are plain ones, "entities": {"type", "text", "start", "end" (words, the end
          exclusive), "score"}; of a plain text also {"start_char", "end_char"}, places in it. A
          list of strings is the words of one text.

        Raises:
          ValueError: an input of another kind; names its number.
        """
        if isinstance(inputs, str):
            return next(self.stream([inputs]))
        if inputs and all(isinstance(word, str) for word in inputs):
            return next(self.stream([list(inputs)]))
        return list(self.stream(inputs))

    def rows(self, inputs: list[Any], start: int) -> Rows:
        for place, item in enumerate(inputs, start):
            words = [item] if isinstance(item, str) else item
            is_list = isinstance(words, Sequence)
            if not is_list or not all(isinstance(word, str) for word in words):
                raise ValueError(
                    f"input {place}: expected a text or a list of words, got {item!r:.80}"
                )
        texts = [item if isinstance(item, str) else list(item) for item in inputs]
        return Rows("inputs", {"text": texts}, range(len(texts)))


PREDICTOR = TokenClassifier
