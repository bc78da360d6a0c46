"""The base of the predictors: model, tokenizer, mesh and compiled forward, for any head.

Inputs are sorted by length and packed as in training, several to a row; answers come in the order
of the inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from jaxtyping import Float

from flaxbert.config import Config, Data, make_config
from flaxbert.config import Mesh as MeshConfig
from flaxbert.data.batches import Examples, inference_batches, plan_inference
from flaxbert.data.checks import Labels
from flaxbert.data.long import cut_for
from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokenizer, resolve_max_length
from flaxbert.errors import ConfigError, FlaxbertError, ModelFileError
from flaxbert.heads import Head, head_of
from flaxbert.inference.models import FlaxBertModel
from flaxbert.loop.forward import make_forward, predict_logits
from flaxbert.loop.mesh import make_mesh, replicated, row_multiple
from flaxbert.storage.parameters import is_checkpoint
from flaxbert.storage.store import on_disk
from flaxbert.storage.workdir import Workdir, existing_workdir, read_json, trained_model
from flaxbert.weights.folder import why_untrained

# Tokens that one device computes at once: few enough for a CPU's caches, many for accelerators.
_TOKENS = {"cpu": 2048}
_ACCELERATOR_TOKENS = 16384

# An answer has the probabilities of so many labels; of more labels only the best.
MOST_LABELS, BEST_LABELS = 200, 10


class Predictor:
    """Predicts with a trained model, on all devices; the base of the public predictors.

    Attributes:
      model: the model, a `FlaxBertFor...`.
      head: turns logits into readable answers and metrics.
      labels: kind of target, and label names in id order.
      notes: what reading the model had to assume, drop or ignore, one line each.
      max_length: tokens of a sequence; `long` says how longer ones are read.
      top_k: labels whose probabilities an answer has, 0 = all.
    """

    model_class: ClassVar[type[FlaxBertModel]]

    def __init__(
        self,
        model: FlaxBertModel,
        *,
        max_length: int = 0,
        long: str = "",
        stride: int = -1,
        batch_rows: int = 0,
        packing: str = "pack",
        top_k: int = -1,
    ) -> None:
        """Wraps a model that was read from a folder with tokenizer files.

        Args:
          model: a trained model; its dtype is the compute dtype.
          max_length: tokens per sequence, [CLS] and [SEP] included; 0 = the model's maximum.
          long: how longer texts are read. "truncate" keeps the beginning, as in training;
            "head_tail" the first quarter and the last three quarters of max_length; "window" reads
            everything in overlapping windows and averages their logits. "" is the head's default:
            texts are truncated, tagged words read in windows.
          stride: tokens that neighbouring windows share; -1 = a quarter of max_length.
          batch_rows: rows computed at once by all devices; 0 = automatic. Fewer need less memory.
          packing: "pack", or "pad" for one sequence a row.
          top_k: labels whose probabilities an answer has, the best first; 0 = all, in the order of
            their ids; -1 = all of up to 200 labels, of more the 10 best.

        Raises:
          ConfigError: a value that is out of range, or a stride or top_k without effect.
          ModelFileError: the model is not trained, or has no tokenizer files.
        """
        if model.source is None:
            raise ModelFileError("the model was not read from a folder, so it has no tokenizer.")
        config = model.config
        if model.fresh:
            why = why_untrained(model.source, config, model.fresh)
            raise ModelFileError(f"{model.source}: {why}")
        self.model = model
        self.tokenizer = Tokenizer(
            model.source,
            vocab_size=config.vocab_size,
            pad_token_id=config.pad_token_id,
            type_vocab_size=config.type_vocab_size,
        )
        self.max_length = resolve_max_length(max_length, config.max_position_embeddings)
        self.head = head_of(config)
        try:
            self._activation, note = self.head.activation(config)
        except ModelFileError as error:
            raise ModelFileError(f"{model.source}: {error}") from error
        self.notes = (*model.notes, note) if note else model.notes
        self.labels = Labels(self.head.name, config.id2label)
        self.top_k = _resolve_top_k(top_k, self.head, self.labels)
        self.long = long or self.head.long[0]
        if self.long not in self.head.long:
            raise ConfigError(f"long: expected one of {', '.join(self.head.long)}, got {long!r}.")
        self.stride = stride
        self._cut = cut_for(self.long, _resolve_stride(stride, self.long, self.max_length))
        if batch_rows < 0:
            raise ConfigError(f"batch_rows: expected a number of rows, got {batch_rows}.")
        self._mesh = make_mesh(MeshConfig(), config)
        self._plan = {
            "row_multiple": row_multiple(self._mesh),
            "rows": batch_rows,
            "packing": packing,
            "tokens": _TOKENS.get(jax.devices()[0].platform, _ACCELERATOR_TOKENS),
        }
        # Transferred once, not with every batch.
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
    ) -> Self:
        """Loads a trained folder, gs:// or hub id; `options` are those of the class.

        With max_length=0 the model of a run uses the run's max_length, any other its maximum.

        Raises:
          ModelFileError: there is no such model, or it has no trained classifier or tokenizer.
          ConfigError: a value that is out of range.
        """
        path_or_id = on_disk(path_or_id)
        run = run_config_of(path_or_id)
        model = cls.model_class.from_pretrained(path_or_id, revision=revision, dtype=dtype)
        return cls(model, max_length=max_length or (run.data.max_length if run else 0), **options)

    def rows(self, inputs: list[Any], start: int) -> Rows:
        """Returns inputs as rows; the first of them has number `start`.

        Raises:
          ValueError: an input of another kind; names its number.
        """
        raise TypeError(f"{type(self).__name__} defines no rows")

    def stream(self, inputs: Iterable[Any], *, size: int = 8192) -> Iterator[dict[str, Any]]:
        """Yields an answer for each input, in order, in constant memory.

        Inputs are read and answered `size` at a time: packing needs many at once.

        Example:
          >>> for answer in classify.stream(line.rstrip("\\n") for line in open("reviews.txt")):
          ...     print(answer["label"])
        """
        inputs = iter(inputs)
        start = 0
        while chunk := list(itertools.islice(inputs, size)):
            rows = self.rows(chunk, start)
            examples = self.encode_rows(rows)
            yield from self.records(rows, examples, self.answers(examples))
            start += len(chunk)

    def encode_rows(self, rows: Rows) -> Examples:
        """Tokenizes rows into sequences of at most max_length tokens."""
        return self.head.encode(rows, self.tokenizer, self.max_length, self._cut)

    def answers(
        self, examples: Examples, after_batch: Callable[[int], object] = lambda sequences: None
    ) -> Float[np.ndarray, "N C"]:
        """Returns what is scored and made readable: a row for each text, or each word.

        These are the logits; where the checkpoint says so, after the activation of a cross-encoder.
        """
        return self._activation(self.compute_logits(examples, after_batch))

    def compute_logits(
        self, examples: Examples, after_batch: Callable[[int], object] = lambda sequences: None
    ) -> Float[np.ndarray, "N C"]:
        """Returns logits: a row for each text, or each word.

        `after_batch` is called with the number of sequences of every batch, and may raise.
        """
        if not len(examples):
            return np.zeros((0, self.model.config.num_labels), np.float32)
        batches = inference_batches(examples, plan_inference(examples.tokens.lengths, **self._plan))
        outputs = predict_logits(
            self._forward, self._params, batches, examples.outputs, after_batch
        )
        return self.head.answers(outputs, examples)

    def records(
        self, rows: Rows, examples: Examples, answers: Float[np.ndarray, "N C"]
    ) -> list[dict[str, Any]]:
        """Returns one readable answer per row."""
        return self.head.readable(answers, examples, rows, self.labels.names, self.top_k)


def _resolve_top_k(top_k: int, head: Head, labels: Labels) -> int:
    if top_k < -1:
        raise ConfigError(f"top_k: expected a number of labels, 0 or -1, got {top_k}.")
    if top_k > 0 and "probabilities" not in head.csv_columns(labels.names):
        raise ConfigError(f"top_k={top_k} has no effect: the answers have no probabilities.")
    if top_k == -1:
        return BEST_LABELS if len(labels.names) > MOST_LABELS else 0
    return top_k


def _resolve_stride(stride: int, long: str, max_length: int) -> int:
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
        return _run_config(Workdir(root))
    except FlaxbertError:
        return None  # some other config.json


def _run_config(run: Workdir) -> Config:
    """Returns the config of a run, with its class weights as the numbers that it trained with."""
    config = make_config(read_json(run.config))
    weights = config.loss.class_weights
    if run.store.is_file(run.facts):
        facts = read_json(run.facts)
        found = facts.get("class_weights") if isinstance(facts, dict) else None
        if isinstance(found, list) and all(isinstance(weight, float) for weight in found):
            weights = tuple(found)
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, class_weights=weights))


class Trained(NamedTuple):
    """A trained model as a command names it: by its run, or by its folder."""

    model: str | os.PathLike[str]
    config: Config  # of its run; the defaults for another model
    facts: dict[str, Any]  # what the run recorded when it started; {} without a run
    workdir: Workdir | None


def trained(workdir: str, model: str) -> Trained:
    """Returns the best model of a run, or the model of a folder or hub id."""
    if workdir:
        run = existing_workdir(workdir)
        best = trained_model(run)
        return Trained(best, _run_config(run), read_json(run.facts), run)
    folder = on_disk(model)
    return Trained(folder, run_config_of(folder) or Config(data=Data(max_length=0)), {}, None)
