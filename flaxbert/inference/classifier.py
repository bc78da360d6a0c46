"""A trained classifier that answers for texts: model, tokenizer, mesh and compiled forward.

    classify = flaxbert.Classifier.from_pretrained("runs/quickstart/model")
    classify("a gripping, beautifully acted film")   # {"label": "positive", "score": 0.9..., ...}

The surprising thing: texts are packed as in training, several to a row, and sorted by length; the
answers come back in the order of the questions.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flaxbert.config import Config, make_config
from flaxbert.config import Mesh as MeshConfig
from flaxbert.data.batches import Examples, inference_batches, plan_inference
from flaxbert.data.checks import Labels
from flaxbert.data.long import LONG, cut_for
from flaxbert.data.tokenize import Tokenizer, Tokens, resolve_max_length
from flaxbert.errors import ConfigError, FlaxbertError, ModelFileError
from flaxbert.heads import problem_of, task_for
from flaxbert.inference.models import FlaxBertForSequenceClassification
from flaxbert.loop.forward import make_forward, predict_logits
from flaxbert.loop.mesh import make_mesh, replicated, row_multiple
from flaxbert.storage.store import on_disk
from flaxbert.storage.workdir import read_json
from flaxbert.weights.formats.orbax_folder import is_checkpoint

# Tokens that one device computes at once. More of them fall out of a CPU's caches; accelerators
# want many.
_TOKENS = {"cpu": 2048}
_ACCELERATOR_TOKENS = 16384

# A text, or a pair of texts.
Input = str | tuple[str, str] | list[str]


class Classifier:
    """Answers for texts with a trained model, on all devices at hand.

    Attributes:
      model: the `FlaxBertForSequenceClassification`.
      labels: kind of target, and label names in id order.
      task: what turns logits into readable answers and metrics.
      max_length: tokens of a text; longer ones are treated as `long` says.
    """

    def __init__(
        self,
        model: FlaxBertForSequenceClassification,
        *,
        max_length: int = 0,
        long: str = "truncate",
        stride: int = -1,
        batch_rows: int = 0,
        packing: str = "pack",
    ) -> None:
        """Wraps a model that was read from a folder with tokenizer files.

        Args:
          model: a trained model; its dtype is the compute dtype.
          max_length: tokens per text, [CLS] and [SEP] included; 0 = the model's maximum.
          long: what becomes of longer texts. "truncate" keeps the beginning, as training does;
            "head_tail" the first quarter and the last three; "window" reads all of it in
            overlapping windows and takes the mean of their logits.
          stride: tokens that neighbouring windows share; -1 = a quarter of max_length.
          batch_rows: rows computed at once by all devices together; 0 = chosen. Fewer need less
            memory.
          packing: "pack", or "pad" for one text a row.

        Raises:
          ConfigError: a value that is out of range, or a stride without windows.
          ModelFileError: the model is not trained, or has no tokenizer files.
        """
        if model.fresh:
            raise ModelFileError(
                f"{model.source}: has no trained classifier ({', '.join(model.fresh)} missing). "
                "Train it first."
            )
        if model.source is None:
            raise ModelFileError("the model was not read from a folder, so it has no tokenizer.")
        config = model.config
        self.model = model
        self.tokenizer = Tokenizer(
            model.source,
            vocab_size=config.vocab_size,
            pad_token_id=config.pad_token_id,
            type_vocab_size=config.type_vocab_size,
        )
        self.max_length = resolve_max_length(max_length, config.max_position_embeddings)
        self.labels = Labels(problem_of(config.problem_type, config.num_labels), config.id2label)
        self.task = task_for(self.labels.problem)
        self.long = long
        self._cut = cut_for(long, _resolve_stride(stride, long, self.max_length))
        if batch_rows < 0:
            raise ConfigError(f"batch_rows: expected a number of rows, got {batch_rows}.")
        self._mesh = make_mesh(MeshConfig(), config)
        self._plan = {
            "row_multiple": row_multiple(self._mesh),
            "rows": batch_rows,
            "packing": packing,
            "tokens": _TOKENS.get(jax.devices()[0].platform, _ACCELERATOR_TOKENS),
        }
        # Once, not with every batch.
        self._params = jax.device_put(model.params, replicated(self._mesh))
        self._forward = make_forward(config, mesh=self._mesh, dtype=model.dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        revision: str = "",
        dtype: str = "float32",
        max_length: int = 0,
        **options: Any,
    ) -> Classifier:
        """Loads a trained folder, gs:// or hub id; `options` are those of `Classifier`.

        With max_length=0 the folder RUN/model of a run takes the run's own max_length, any other
        model its maximum.

        Example:
          >>> classify = Classifier.from_pretrained("runs/quickstart/model", long="head_tail")
          >>> [answer["label"] for answer in classify(["a joy", "a bore"])]
          ['positive', 'negative']

        Raises:
          ModelFileError: there is no such model, or it has no trained classifier or tokenizer.
          ConfigError: a value that is out of range.
        """
        path_or_id = on_disk(path_or_id)
        run = run_config_of(path_or_id)
        model = FlaxBertForSequenceClassification.from_pretrained(
            path_or_id, revision=revision, dtype=dtype
        )
        return cls(model, max_length=max_length or (run.data.max_length if run else 0), **options)

    def __call__(self, inputs: Any) -> Any:
        """Answers for one text, or for many.

        Args:
          inputs: a text; a list of texts; a list of pairs [(a, b), ...]; or ([a, ...], [b, ...]),
            first and second texts apart.

        Returns:
          A dict for one text, else a list of them in order: {"label", "score", "probabilities"},
          for several labels a row {"labels", "probabilities"}, for regression {"value"}.

        Raises:
          ValueError: anything else than texts; names the place.
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

    def stream(self, inputs: Iterable[Input], *, size: int = 8192) -> Iterator[dict[str, Any]]:
        """Yields an answer for each text or pair, in order; memory does not grow.

        Texts are taken and answered `size` at a time: packing wants many at once.

        Example:
          >>> for answer in classify.stream(line.rstrip("\\n") for line in open("reviews.txt")):
          ...     print(answer["label"])
        """
        inputs = iter(inputs)
        start = 0
        while chunk := list(itertools.islice(inputs, size)):
            texts, pairs = _columns(chunk, start)
            yield from self.readable(self.logits(texts, pairs))
            start += len(chunk)

    def logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        after_batch: Callable[[int], object] = lambda sequences: None,
    ) -> Float[np.ndarray, "N C"]:
        """Returns one row of logits per text (or pair of texts), in order."""
        return self.compute(self.encode(texts, pairs), after_batch)

    def readable(self, logits: Float[np.ndarray, "N C"]) -> list[dict[str, Any]]:
        """Returns the answers that rows of logits stand for."""
        return self.task.readable(logits, self.labels.names)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Turns texts into sequences of at most max_length tokens: one each, or windows."""
        return self.tokenizer.encode(texts, pairs, max_length=self.max_length, cut=self._cut)

    def compute(
        self, tokens: Tokens, after_batch: Callable[[int], object] = lambda sequences: None
    ) -> Float[np.ndarray, "N C"]:
        """Returns the logits of each text; of several windows their mean.

        `after_batch` is called with the number of sequences of every batch, and may raise.
        """
        if not len(tokens):
            return np.zeros((0, self.model.config.num_labels), np.float32)
        examples = Examples(tokens, np.zeros(len(tokens), np.int32))
        batches = inference_batches(examples, plan_inference(tokens.lengths, **self._plan))
        logits = predict_logits(self._forward, self._params, batches, len(tokens), after_batch)
        if tokens.owners is None:
            return logits
        counts = np.bincount(tokens.owners)
        sums = np.zeros((len(counts), logits.shape[1]))
        np.add.at(sums, tokens.owners, logits)
        return (sums / counts[:, None]).astype(logits.dtype)


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


def _resolve_stride(stride: int, long: str, max_length: int) -> int:
    if long not in LONG:
        raise ConfigError(f"long: expected one of {', '.join(LONG)}, got {long!r}.")
    if stride == -1:
        return max_length // 4
    if long != "window":
        raise ConfigError(f"stride={stride} has no effect with long={long}. Set long=window.")
    most = (max_length - 2) // 2
    if not 0 <= stride <= most:
        raise ConfigError(f"stride={stride}: expected 0 to {most}, half of a window.")
    return stride


def run_config_of(directory: str | os.PathLike[str]) -> Config | None:
    """Returns the config of the run whose model/ or checkpoint a folder is, or None."""
    folder = Path(on_disk(directory)).resolve()
    root = folder.parents[1] if is_checkpoint(folder) else folder.parent
    path = root / "config.json"
    if not folder.is_dir() or not path.is_file():
        return None
    try:
        return make_config(read_json(path))
    except FlaxbertError:
        return None  # some other config.json
