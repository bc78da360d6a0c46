"""The inputs of a run: model files, labels and examples, read before any device is used.

Note: a resume reads the tokenizer and the label map that the first start wrote into the workdir,
never the pretrained weights; of a hub data set it reads the recorded revision.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.config import Config, refuse_without_validation, seed_for
from flaxbert.data import checks, sources, splits
from flaxbert.data.batches import Examples
from flaxbert.data.checks import Labels
from flaxbert.data.class_weights import is_file, weights_for
from flaxbert.data.splits import Split
from flaxbert.data.tokenize import Tokenizer, resolve_max_length
from flaxbert.errors import ConfigError, DataError, ModelFileError
from flaxbert.heads import Head, Params, head_named, head_of, heads_in
from flaxbert.hosts.group import SingleProcess
from flaxbert.model.bert_config import BertConfig
from flaxbert.run import shared_data
from flaxbert.shell.console import say
from flaxbert.storage.parameters import description_of
from flaxbert.storage.workdir import Workdir
from flaxbert.weights.folder import read_config, read_model, with_labels
from flaxbert.weights.resolve import resolve_model
from flaxbert.weights.table import flatten, torch_name

_VALIDATION = "validation "


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from; its weights are read when they are needed."""

    path: str  # as the config names it
    folder: str
    ignored: list[str]  # fields of its config that are not used
    names: list[str]  # its label names, [] if they are LABEL_n
    seed: int  # of a fresh head

    def load_params(self, bert: BertConfig) -> Params:
        """Returns the weights as numpy arrays, with a fresh head if it has none that fits.

        Raises:
          ModelFileError: they cannot be read, or are not finite.
        """
        loaded = read_model(Path(self.folder), bert, self.seed, self.ignored)
        label_notes = _label_notes(tuple(self.names), bert.id2label, loaded.fresh)
        for note in (*label_notes, *loaded.notes):
            say(f"{self.path}: {note}")
        _refuse_nonfinite(self.path, loaded.params)
        return loaded.params


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that a run reads before any device is used."""

    bert: BertConfig  # with the run's head and labels
    labels: Labels
    train: Examples
    validation: dict[str, Examples]  # {suffix of its metrics: examples}; {} = none
    lines: tuple[str, ...]  # the data report as log lines
    report: dict[str, Any]  # the same and more, for data_report.json
    tokenizer_files: dict[str, bytes]  # of the exported model, by name
    start: Start
    revision: str  # of the model; "" for a folder
    dataset_revision: str  # of the data set; "" for files
    best_metric: str  # picks the best model
    class_weights: tuple[float, ...]  # of the loss, in label-id order; () = all 1

    @property
    def head(self) -> Head:
        return head_named(self.labels.problem)

    @property
    def facts(self) -> dict[str, Any]:
        """What other processes on this machine need beside the examples."""
        return {
            "bert": self.bert.to_dict(),
            "problem": self.labels.problem,
            "names": self.labels.names,
            "start": dataclasses.asdict(self.start),
            "revision": self.revision,
            "dataset_revision": self.dataset_revision,
            "best_metric": self.best_metric,
            "class_weights": self.class_weights,
        }

    @property
    def sets(self) -> dict[str, Examples]:
        """All examples by name."""
        named = {f"{_VALIDATION}{suffix}": split for suffix, split in self.validation.items()}
        return {"train": self.train, **named}


def read_inputs(config: Config, workdir: Workdir | None, record: dict[str, Any]) -> Inputs:
    """Reads and checks model folder and data.

    Args:
      config: of the run.
      workdir: has the tokenizer and labels that a resume reads; None = a plan, never a resume.
      record: run.json of the checkpoint that a resume starts from, {} for a fresh start.
    """
    data = sources.with_task(config.data)
    config = dataclasses.replace(config, data=data)
    if workdir and record:
        folder, revision = workdir.store.local_copy(workdir.source), ""
    else:
        folder, revision = resolve_model(config.model.path, config.model.revision)
    bert, ignored = read_config(folder)
    tokenizer = Tokenizer(
        description_of(folder),
        vocab_size=bert.vocab_size,
        pad_token_id=bert.pad_token_id,
        type_vocab_size=bert.type_vocab_size,
    )
    max_length = resolve_max_length(data.max_length, bert.max_position_embeddings)

    head = head_of(bert) if record else next(iter(heads_in(config.head.name).values()))
    read = splits.read_training(config, head, record.get("dataset_revision", ""))
    train_rows, validation_rows = read.train, read.validation
    own_names = bert.id2label if bert.has_label_names and not record else ()
    if record:
        labels = Labels(head.name, bert.id2label)
    else:
        known = checks.Known(own_names, read.names)
        labels = head.learn_labels(train_rows, config, known)
        head = head_named(labels.problem)
    head.check_options(labels, config)
    asked = _asked_weights(config, record)
    weights_for(asked, labels)  # before anything is tokenized
    if data.validation_fraction and not validation_rows:
        train_rows, held_out = splits.hold_out(config, head, train_rows, labels)
        validation_rows = {"": held_out}
    if not validation_rows:
        refuse_without_validation(config.train)

    split = functools.partial(
        head.split, labels=labels, tokenizer=tokenizer, max_length=max_length, config=config
    )
    train = split("training", train_rows)
    validation = {
        suffix: split(f"validation {suffix}".rstrip(), rows)
        for suffix, rows in validation_rows.items()
    }
    named = {f"validation {suffix}".rstrip(): split for suffix, split in validation.items()}
    report = splits.report_on(data, labels, train, named)
    told = tokenizer.told(pairs=train_rows.pairs is not None) + tokenizer.export_warnings
    bert = with_labels(bert, labels.names, head.problem_type, head.architecture)
    return Inputs(
        bert=bert,
        labels=labels,
        train=train.examples,
        validation={suffix: split.examples for suffix, split in validation.items()},
        lines=told + report.lines,
        report=report.values,
        tokenizer_files=tokenizer.exported(max_length),
        start=Start(
            config.model.path,
            str(folder),
            list(ignored),
            list(own_names),
            seed_for(config, "init"),
        ),
        revision=revision,
        dataset_revision=read.revision,
        best_metric=_best_metric(config, head, train.examples, labels),
        class_weights=_class_weights(asked, labels, train),
    )


def read_inputs_together(
    config: Config, workdir: Workdir, group: SingleProcess, record: dict[str, Any]
) -> Inputs:
    """Calls `read_inputs` once on each machine of a run, and shares the result.

    Raises:
      DataError: the machines have different data.
    """
    own = read_inputs(config, workdir, record) if group.is_leader else None
    if group.count == 1 and own:
        return own
    sets, told = shared_data.hand_over(group, own.sets if own else None, own.facts if own else None)
    inputs = own or _inputs_from(sets, told)
    digests = group.all_gather([split.digest for split in own.sets.values()] if own else None)
    for process, digest in enumerate(digests):
        if digest not in (None, digests[0]):
            raise DataError(
                f"process {process} has read other data than process 0. Give all machines the same "
                "files, or one revision of a data set."
            )
    return inputs


def _inputs_from(sets: dict[str, Examples], told: dict[str, Any]) -> Inputs:
    """Returns the inputs that another process of this machine has read, and reported."""
    bert, _ = BertConfig.from_dict(told["bert"])
    validation = {
        name.removeprefix(_VALIDATION): examples
        for name, examples in sets.items()
        if name.startswith(_VALIDATION)
    }
    return Inputs(
        bert=bert,
        labels=Labels(told["problem"], tuple(told["names"])),
        train=sets["train"],
        validation=validation,
        lines=(),
        report={},
        tokenizer_files={},
        start=Start(**told["start"]),
        revision=told["revision"],
        dataset_revision=told["dataset_revision"],
        best_metric=told["best_metric"],
        class_weights=tuple(told["class_weights"]),
    )


def _refuse_nonfinite(path: str, params: Params) -> None:
    """Raises ModelFileError if a weight is NaN or infinite: every update would be skipped."""
    for name, array in flatten(params).items():
        odd = int(np.size(array) - np.isfinite(array).sum())
        if odd:
            raise ModelFileError(
                f"{path}: {torch_name(name)[0]} has {odd} of {np.size(array)} numbers that are not "
                "finite. Fetch the model again, or start from another one."
            )


def _label_notes(
    checkpoint: tuple[str, ...], names: tuple[str, ...], fresh: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns a note if the checkpoint's labels are not the run's, and whether its head is kept."""
    if not checkpoint or checkpoint == names:
        return ()
    had, has = (", ".join(map(repr, some[:20])) for some in (checkpoint, names))
    kept = "is not used" if "classifier.weight" in fresh else "is trained further"
    return (f"the checkpoint's labels are {had}, the run's are {has}; its head {kept}",)


def _asked_weights(config: Config, record: dict[str, Any]) -> tuple[Any, ...]:
    """Returns the class weights as asked for; of a resume whose file is gone, those recorded."""
    asked = config.loss.class_weights
    gone = len(asked) == 1 and is_file(asked[0]) and not Path(asked[0]).expanduser().is_file()
    return tuple(record["class_weights"]) if gone and "class_weights" in record else asked


def _class_weights(asked: tuple[Any, ...], labels: Labels, train: Split) -> tuple[float, ...]:
    """Returns the weights in label-id order."""
    counts = train.report.values.get("labels", {})
    words = train.report.values.get("words", len(train.rows))
    return weights_for(asked, labels, counts, words)


def _best_metric(config: Config, head: Head, examples: Examples, labels: Labels) -> str:
    """Returns the metric that picks the best model.

    Raises:
      ConfigError: the head has no such config.train.best_metric.

    """
    asked = config.train.best_metric
    if not asked:
        return sources.main_metric_of(config.data.task) or head.main_metric(labels.names)
    names = ["loss", *head.metric_names(examples, labels.names)]
    if asked not in names:
        near = difflib.get_close_matches(asked, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config.train.best_metric: expected one of {', '.join(names)}, got {asked!r}.{hint}"
        )
    return asked
