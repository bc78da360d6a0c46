"""What a run knows before a device is asked: model files, labels, examples and the planned shapes.

The surprising thing: a resume reads the tokenizer and the label map that the first start left in
the workdir, never the pretrained weights; of a hub data set it reads the recorded revision.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.config import Config, refuse_without_validation, seed_for
from flaxbert.data import checks, splits
from flaxbert.data.batches import (
    Examples,
    plan_inference,
    plan_training,
    steps_per_epoch,
    total_steps,
)
from flaxbert.data.checks import Labels
from flaxbert.data.pack import Plan
from flaxbert.data.sources import named_tasks
from flaxbert.data.tokenize import Tokenizer, resolve_max_length
from flaxbert.data.tokenizer_files import files_in
from flaxbert.errors import ConfigError, DataError, ModelFileError
from flaxbert.heads import HF_PROBLEM_TYPES, problem_of, task_for
from flaxbert.hosts.group import SingleProcess
from flaxbert.loop.mesh import row_multiple
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.heads import Params
from flaxbert.run import shared_data
from flaxbert.run.row_costs import work_for
from flaxbert.shell.console import say
from flaxbert.storage.workdir import Workdir
from flaxbert.weights.folder import read_config, read_model, with_labels
from flaxbert.weights.formats.orbax_folder import description_of
from flaxbert.weights.resolve import resolve_model
from flaxbert.weights.table import flatten, torch_name

_VALIDATION = "validation "


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from; its weights are read when they are wanted."""

    path: str  # as the config names it
    folder: str
    ignored: list[str]  # fields of its config that are not used
    names: list[str]  # its labels, if they have names
    seed: int  # of a fresh head

    def load_params(self, bert: BertConfig) -> Params:
        """Returns the weights as numpy arrays, with a fresh head where it has none that fits.

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
class Prepared:
    """Everything that is known before a device is asked."""

    bert: BertConfig  # with the run's labels
    labels: Labels
    train: Examples
    validation: dict[str, Examples]  # {suffix of its metrics: examples}; {} = none
    lines: tuple[str, ...]  # what to tell about the data
    report: dict[str, Any]  # the same and more, for data_report.json
    tokenizer_files: list[Path]
    start: Start
    revision: str  # of the model; "" for a folder
    dataset_revision: str  # of the data set; "" for files
    metric: str  # picks the best model, unless the config names another

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
            "metric": self.metric,
        }

    @property
    def sets(self) -> dict[str, Examples]:
        """All examples by name."""
        named = {f"{_VALIDATION}{suffix}": split for suffix, split in self.validation.items()}
        return {"train": self.train, **named}


@dataclasses.dataclass(frozen=True)
class Plans:
    train: Plan
    validation: tuple[Plan, ...] | None
    total: int  # updates
    per_epoch: int


def prepare(
    config: Config, workdir: Workdir | None, *, resumed: bool, dataset_revision: str = ""
) -> Prepared:
    """Reads and checks model folder and data; without a workdir nothing can be resumed.

    A resume needs no pretrained weights: tokenizer files and the label map are those that the first
    start left in the workdir, and a hub data set is that of the revision recorded there.
    """
    data, model = named_tasks.with_task(config.data), config.model
    if workdir and resumed:
        folder, revision = workdir.store.local_copy(workdir.source), ""
    else:
        folder, revision = resolve_model(model.path, model.revision)
    bert, ignored = read_config(folder)
    described = description_of(folder)
    tokenizer = Tokenizer(
        described,
        vocab_size=bert.vocab_size,
        pad_token_id=bert.pad_token_id,
        type_vocab_size=bert.type_vocab_size,
    )
    max_length = resolve_max_length(data.max_length, bert.max_position_embeddings)

    read = splits.read_training(data, dataset_revision)
    checkpoint_names = bert.id2label if bert.has_label_names and not resumed else ()
    train_rows = checks.usable_texts(read.train, data.on_bad_row, data.on_empty)
    validation_rows = read.validation
    if resumed:
        labels = checks.Labels(problem_of(bert.problem_type, bert.num_labels), bert.id2label)
    else:
        known = checks.Known(checkpoint_names, read.names)
        labels = checks.learn_labels(
            train_rows,
            data.problem,
            data.label_separator,
            known,
            data.on_bad_row,
            data.on_single_class,
        )
    checks.check_options(labels, config.loss.label_smoothing, config.loss.class_weights)
    if data.validation_fraction and not validation_rows:
        seed = seed_for(config, "data")
        train_rows, held_out = splits.hold_out(data, train_rows, labels, seed)
        validation_rows = {"": held_out}
    if not validation_rows:
        refuse_without_validation(config.train)

    examples = functools.partial(
        splits.make_examples,
        labels=labels,
        tokenizer=tokenizer,
        max_length=max_length,
        separator=data.label_separator,
        on_bad_row=data.on_bad_row,
        on_empty=data.on_empty,
    )
    train = examples("training", train_rows)
    validation = {
        suffix: examples(f"validation {suffix}".rstrip(), rows)
        for suffix, rows in validation_rows.items()
    }
    named = {f"validation {suffix}".rstrip(): split for suffix, split in validation.items()}
    report = splits.report_on(data, labels, train, named)
    bert = with_labels(bert, labels.names, HF_PROBLEM_TYPES[labels.problem])

    return Prepared(
        bert=bert,
        labels=labels,
        train=train.examples,
        validation={suffix: split.examples for suffix, split in validation.items()},
        lines=tokenizer.warnings + report.lines,
        report=report.values,
        tokenizer_files=files_in(described),
        start=Start(
            model.path,
            str(folder),
            list(ignored),
            list(checkpoint_names),
            seed_for(config, "init"),
        ),
        revision=revision,
        dataset_revision=read.revision,
        metric=named_tasks.main_metric_of(data.task) or task_for(labels.problem).MAIN_METRIC,
    )


def prepare_together(
    config: Config,
    workdir: Workdir,
    group: SingleProcess,
    *,
    resumed: bool,
    dataset_revision: str = "",
) -> Prepared:
    """`prepare` for the processes of a run: once on each machine, and the same on all.

    Raises:
      DataError: machines have other data.
    """
    own = None
    if group.is_leader:
        own = prepare(config, workdir, resumed=resumed, dataset_revision=dataset_revision)
    if group.count == 1 and own:
        return own
    sets, told = shared_data.hand_over(group, own.sets if own else None, own.facts if own else None)
    prepared = own or _prepared_from(sets, told)
    digests = group.all_gather([split.digest for split in own.sets.values()] if own else None)
    for process, digest in enumerate(digests):
        if digest not in (None, digests[0]):
            raise DataError(
                f"process {process} has read other data than process 0. Give all machines the same "
                "files, or a data set at one revision."
            )
    return prepared


def _prepared_from(sets: dict[str, Examples], told: dict[str, Any]) -> Prepared:
    """Returns what another process of this machine has prepared; it has told the user."""
    bert, _ = BertConfig.from_dict(told["bert"])
    validation = {
        name.removeprefix(_VALIDATION): examples
        for name, examples in sets.items()
        if name.startswith(_VALIDATION)
    }
    return Prepared(
        bert=bert,
        labels=Labels(told["problem"], tuple(told["names"])),
        train=sets["train"],
        validation=validation,
        lines=(),
        report={},
        tokenizer_files=[],
        start=Start(**told["start"]),
        revision=told["revision"],
        dataset_revision=told["dataset_revision"],
        metric=told["metric"],
    )


def _refuse_nonfinite(path: str, params: Params) -> None:
    """Raises ModelFileError: every update would be skipped, or NaN would spread with the others."""
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
    """Tells that a checkpoint was trained on other labels: its head, if kept, means those."""
    if not checkpoint or checkpoint == names:
        return ()
    had, has = (", ".join(map(repr, some[:20])) for some in (checkpoint, names))
    kept = "is not used" if "classifier.weight" in fresh else "goes on from there"
    return (f"the checkpoint's labels are {had}, the run's are {has}; its head {kept}",)


def best_metric_of(config: Config, prepared: Prepared) -> str:
    """Returns the metric that picks the best model.

    Raises:
      ConfigError: config.train.best_metric is none that the task has.
    """
    asked = config.train.best_metric
    labels = prepared.train.labels[:2]
    some = np.zeros((len(labels), prepared.bert.num_labels))
    names = ["loss", *task_for(prepared.labels.problem).metrics(some, labels)]
    if asked and asked not in names:
        near = difflib.get_close_matches(asked, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config.train.best_metric: expected one of {', '.join(names)}, got {asked!r}.{hint}"
        )
    return asked or prepared.metric


def plan(config: Config, prepared: Prepared, mesh: Mesh, accumulate: int) -> Plans:
    """Plans rows and updates for a mesh, in so many micro-batches."""
    count, train = len(prepared.train), config.train
    total = total_steps(count, train.batch_size, epochs=train.epochs, steps=train.steps)
    device = mesh.devices.flat[0]
    dtype = resolve_dtype(config.model.dtype, device)
    work = work_for(prepared.bert, device.platform, dtype, mesh.shape["model"])
    multiple = row_multiple(mesh)
    training = plan_training(
        prepared.train,
        batch_size=train.batch_size,
        seed=seed_for(config, "data"),
        steps=total,
        packing=config.data.packing,
        accumulate=accumulate,
        row_multiple=multiple,
        row_length=config.data.row_length,
        work=work,
    )
    validation = None
    if prepared.validation:
        lengths = [examples.tokens.lengths for examples in prepared.validation.values()]
        validation = plan_inference(
            np.concatenate(lengths),
            row_multiple=multiple,
            packing=config.data.packing,
            work=work,
        )
    return Plans(training, validation, total, steps_per_epoch(count, train.batch_size))


def resolve_dtype(asked: str, device: Any = None) -> str:
    """Returns the compute dtype on a device (None: the first one at hand).

    auto is bfloat16 on TPUs and on GPUs from Ampere on. On CPUs it is float32: bfloat16 products
    were no faster there in this program.
    """
    if asked != "auto":
        return asked
    device = jax.devices()[0] if device is None else device
    if device.platform == "gpu":
        try:
            capability = float(getattr(device, "compute_capability", 0))
        except ValueError:  # not NVIDIA's numbering: all of those in use are good at it
            capability = 8.0
        return "bfloat16" if capability >= 8 else "float32"
    return "bfloat16" if device.platform == "tpu" else "float32"
