"""A trained token classifier that tags words and finds entities.

tag = flaxbert.TokenClassifier.from_pretrained("runs/ner/model")
tag(["EU", "rejects", "German", "call"])   # {"tags": ["B-ORG", "O", ...], "entities": [...]}
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flaxbert.data.rows import Rows
from flaxbert.inference.models import FlaxBertModel
from flaxbert.inference.predictor import Predictor


class FlaxBertForTokenClassification(FlaxBertModel):
    """A classifier of every token: the function of the PyTorch class of that name.

    Logits are [B, L, C], those of padding included.
    """

    architecture = "BertForTokenClassification"


class TokenClassifier(Predictor):
    """Answers for texts with a trained `FlaxBertForTokenClassification`.

    Exactly one tag comes out for each word that goes in, however long the text: long ones are read
    in overlapping windows. A plain text is split at white space, and punctuation around a word is a
    word of its own.

    Example:
      >>> tag = TokenClassifier.from_pretrained("runs/ner/model")
      >>> [entity["text"] for entity in tag("Angela Merkel visits Paris.")["entities"]]
      ['Angela Merkel', 'Paris']
    """

    model_class = FlaxBertForTokenClassification

    def __call__(self, inputs: str | Sequence[Any]) -> Any:
        """Answers for one text, one list of words, or a list of several of either.

        Returns:
          A dict for one, else a list of them in order: {"words", "tags", "scores"} and, unless the
          tags are plain ones, "entities": {"type", "text", "start", "end" (words, the end
          exclusive), "score"}; of a plain text also {"start_char", "end_char"}, places in it. A
          list of strings is the words of one text.

        Raises:
          ValueError: anything else; names the place.
        """
        if isinstance(inputs, str):
            return next(self.stream([inputs]))
        if all(isinstance(word, str) for word in inputs):
            return next(self.stream([list(inputs)]))
        return list(self.stream(inputs))

    def stream(
        self, inputs: Iterable[str | Sequence[str]], *, size: int = 8192
    ) -> Iterator[dict[str, Any]]:
        """Yields an answer for each text or list of words, in order; memory does not grow."""
        inputs = iter(inputs)
        start = 0
        while chunk := list(itertools.islice(inputs, size)):
            for place, item in enumerate(chunk, start):
                if not isinstance(item, str) and not all(isinstance(word, str) for word in item):
                    raise ValueError(
                        f"input {place}: expected a text or a list of words, got {item!r:.80}"
                    )
            texts = [item if isinstance(item, str) else list(item) for item in chunk]
            rows = Rows("inputs", {"text": texts}, range(len(texts)))
            examples = self.encode_rows(rows)
            yield from self.records(rows, examples, self.answers(examples))
            start += len(chunk)


PREDICTOR = TokenClassifier
