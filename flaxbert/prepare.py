"""What a run knows before a device is asked: model files, labels, examples and the planned shapes.

The surprising thing: a resume reads the tokenizer and the label map that the first start left in
the workdir, never the hub or the pretrained weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax

from flaxbert import cli
from flaxbert.config import Config, seed_for
from flaxbert.data import check, splits
from flaxbert.data.batches import (
    Examples,
    plan_inference,
    plan_training,
    steps_per_epoch,
    total_steps,
)
from flaxbert.data.check import Labels
from flaxbert.data.pack import Plan
from flaxbert.data.tokenize import Tokenizer, files_in, resolve_max_length
from flaxbert.model.config import BertConfig
from flaxbert.model.heads import Params
from flaxbert.storage.workdir import Workdir
from flaxbert.tasks import HF_PROBLEM_TYPES, problem_of
from flaxbert.weights.folder import read_config, read_model, with_labels
from flaxbert.weights.hub import resolve_model


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that is known before a device is asked."""

    bert: BertConfig  # with the run's labels
    labels: Labels
    train: Examples
    validation: Examples | None
    lines: tuple[str, ...]  # what to tell about the data
    tokenizer_files: list[Path]
    load_params: Callable[[], Params]  # reads the pretrained weights
    revision: str  # of the model; "" for a folder


@dataclasses.dataclass(frozen=True)
class Plans:
    train: Plan
    validation: tuple[Plan, ...] | None
    total: int  # updates
    per_epoch: int


def prepare(config: Config, workdir: Workdir, *, resumed: bool) -> Prepared:
    """Reads and checks model folder and data.

    A resume needs neither hub nor pretrained weights: tokenizer files and the label map are those
    that the first start left in the workdir.
    """
    data, model = config.data, config.model
    folder, revision = (
        (workdir.source, "") if resumed else resolve_model(model.path, model.revision)
    )
    bert, ignored = read_config(folder)
    tokenizer = Tokenizer(
        folder,
        vocab_size=bert.vocab_size,
        pad_token_id=bert.pad_token_id,
        type_vocab_size=bert.type_vocab_size,
    )
    max_length = resolve_max_length(data.max_length, bert.max_position_embeddings)

    train_rows, validation_rows, task_names = splits.read_training(data)
    check.check_texts(train_rows)
    if resumed:
        labels = check.Labels(problem_of(bert.problem_type, bert.num_labels), bert.id2label)
    else:
        known = check.Known(bert.id2label if bert.has_label_names else (), task_names)
        labels = check.learn_labels(train_rows, data.problem, data.label_separator, known)
    check.check_options(labels, config.loss.label_smoothing, config.loss.class_weights)
    if data.validation_fraction and validation_rows is None:
        seed = seed_for(config, "data")
        train_rows, validation_rows = splits.hold_out(data, train_rows, labels, seed)

    examples = functools.partial(
        splits.make_examples,
        labels=labels,
        tokenizer=tokenizer,
        max_length=max_length,
        separator=data.label_separator,
    )
    train = examples("training", train_rows)
    validation = examples("validation", validation_rows) if validation_rows is not None else None
    bert = with_labels(bert, labels.names, HF_PROBLEM_TYPES[labels.problem])

    def load_params() -> Params:
        loaded = read_model(folder, bert, seed_for(config, "init"), ignored)
        for note in loaded.notes:
            cli.say(f"{model.path}: {note}")
        return loaded.params

    return Prepared(
        bert=bert,
        labels=labels,
        train=train.examples,
        validation=validation.examples if validation else None,
        lines=train.lines + (validation.lines if validation else ()),
        tokenizer_files=files_in(folder),
        load_params=load_params,
        revision=revision,
    )


def plan(config: Config, prepared: Prepared, row_multiple: int) -> Plans:
    """Plans rows and updates; rows are a multiple of `row_multiple`."""
    count, train = len(prepared.train), config.train
    total = total_steps(count, train.batch_size, epochs=train.epochs, steps=train.steps)
    training = plan_training(
        prepared.train,
        batch_size=train.batch_size,
        seed=seed_for(config, "data"),
        steps=total,
        packing=config.data.packing,
        accumulate=train.accumulate,
        row_multiple=row_multiple,
        row_length=config.data.row_length,
    )
    validation = None
    if prepared.validation is not None:
        validation = plan_inference(
            prepared.validation.tokens.lengths,
            row_multiple=row_multiple,
            packing=config.data.packing,
        )
    return Plans(training, validation, total, steps_per_epoch(count, train.batch_size))


def resolve_dtype(asked: str) -> str:
    """Returns the compute dtype; auto is bfloat16 on TPUs and on GPUs from Ampere on.

    On CPUs auto is float32: bfloat16 products were no faster there in this program.
    """
    if asked != "auto":
        return asked
    device = jax.devices()[0]
    if device.platform == "gpu":
        try:
            capability = float(getattr(device, "compute_capability", 0))
        except ValueError:  # not NVIDIA's numbering: all of those in use are good at it
            capability = 8.0
        return "bfloat16" if capability >= 8 else "float32"
    return "bfloat16" if device.platform == "tpu" else "float32"
