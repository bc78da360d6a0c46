"""A trained model that answers: model, tokenizer, mesh and compiled forward, whatever its head.

Inputs are packed as in training, several to a row, and sorted by length; the answers come back in
the order of the inputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jaxtyping import Float

from flaxbert.config import Config, make_config
from flaxbert.config import Mesh as MeshConfig
from flaxbert.data.batches import Examples, inference_batches, plan_inference
from flaxbert.data.checks import Labels
from flaxbert.data.long import cut_for
from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokenizer, resolve_max_length
from flaxbert.errors import ConfigError, FlaxbertError, ModelFileError
from flaxbert.heads import head_of
from flaxbert.inference.models import FlaxBertModel
from flaxbert.loop.forward import make_forward, predict_logits
from flaxbert.loop.mesh import make_mesh, replicated, row_multiple
from flaxbert.storage.parameters import is_checkpoint
from flaxbert.storage.store import on_disk
from flaxbert.storage.workdir import read_json

# Tokens that one device computes at once. More of them fall out of a CPU's caches; accelerators
# want many.
_TOKENS = {"cpu": 2048}
_ACCELERATOR_TOKENS = 16384


class Predictor:
    """Answers with a trained model, on all devices at hand; the base of the public predictors.

    Attributes:
      model: the model, a `FlaxBertFor...`.
      head: what turns logits into readable answers and metrics.
      labels: kind of target, and label names in id order.
      max_length: tokens of a sequence; longer ones are treated as `long` says.
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
    ) -> None:
        """Wraps a model that was read from a folder with tokenizer files.

        Args:
          model: a trained model; its dtype is the compute dtype.
          max_length: tokens per sequence, [CLS] and [SEP] included; 0 = the model's maximum.
          long: what becomes of longer texts. "truncate" keeps the beginning, as training does;
            "head_tail" the first quarter and the last three; "window" reads all of it in
            overlapping windows and takes the mean of their logits. "" is the head's default:
            texts are truncated, words all read in windows.
          stride: tokens that neighbouring windows share; -1 = a quarter of max_length.
          batch_rows: rows computed at once by all devices together; 0 = chosen. Fewer need less
            memory.
          packing: "pack", or "pad" for one sequence a row.

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
        self.head = head_of(config)
        self.labels = Labels(self.head.name, config.id2label)
        self.long = long or self.head.long[0]
        if self.long not in self.head.long:
            raise ConfigError(f"long: expected one of {', '.join(self.head.long)}, got {long!r}.")
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
    ) -> Self:
        """Loads a trained folder, gs:// or hub id; `options` are those of the class.

        With max_length=0 the folder RUN/model of a run takes the run's own max_length, any other
        model its maximum.

        Raises:
          ModelFileError: there is no such model, or it has no trained classifier or tokenizer.
          ConfigError: a value that is out of range.
        """
        path_or_id = on_disk(path_or_id)
        run = run_config_of(path_or_id)
        model = cls.model_class.from_pretrained(path_or_id, revision=revision, dtype=dtype)
        return cls(model, max_length=max_length or (run.data.max_length if run else 0), **options)

    def encode_rows(self, rows: Rows) -> Examples:
        """Turns rows into sequences of at most max_length tokens."""
        return self.head.encode(rows, self.tokenizer, self.max_length, self._cut)

    def answers(
        self, examples: Examples, after_batch: Callable[[int], object] = lambda sequences: None
    ) -> Float[np.ndarray, "N C"]:
        """Returns the logits of what is asked about: a row for each text, or each word.

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
        return self.head.readable(answers, examples, rows, self.labels.names)


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
        return make_config(read_json(path))
    except FlaxbertError:
        return None  # some other config.json
