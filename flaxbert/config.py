"""The config of a run: frozen dataclasses, built once from the ConfigDict and never changed.

These classes are the schema: every field is here with its default and meaning. The files in
`configs/` set some of them. Where a section names one of several kinds (`optim.name`), the options
of each kind are declared in its own file, and appear here as `optim.<name>`.

Note: defaults are 0, -1 or "", never None, because `config_flags` cannot override a None leaf on
the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from typing import Any, get_args, get_origin, get_type_hints

from flaxbert.errors import ConfigError
from flaxbert.registry import declared, members, with_options


@dataclasses.dataclass(frozen=True)
class Seeds:
    """Seeds that can be set one by one; -1 derives one from `seed`."""

    init: int = -1  # initial values of a new head (and pooler)
    data: int = -1  # order of the training examples, and the split by data.validation_fraction
    dropout: int = -1  # dropout masks


@dataclasses.dataclass(frozen=True)
class Model:
    path: str = "embedded:minilm"  # hub id, directory, or embedded:minilm
    revision: str = ""  # hub revision (branch, tag or commit); "" = the default branch
    dtype: str = "auto"  # compute dtype: float32 | bfloat16 | auto; parameters stay float32


@dataclasses.dataclass(frozen=True)
class Data:
    task: str = "text"  # text = own files; rotten_tomatoes; a GLUE task: cola, sst2, mrpc, ...
    dataset: str = ""  # hub data set or folder laid out like one; "" = files, or the task's own
    dataset_config: str = ""  # its configuration; "" = the default one
    dataset_revision: str = ""  # hub revision (branch, tag or commit); "" = the default branch
    train: str = ""  # file in a format of docs/own_data.md, such as .csv; or split of data.dataset
    validation: str = ""  # the same; "" = that of data.dataset, or data.validation_fraction
    test: str = ""  # the same, for `evaluate --split=test`
    validation_fraction: float = 0.0  # held out of data.train when there is no validation file
    text: str = "text"  # column of the text
    text_pair: str = ""  # column of the second text; "" = single sentences
    label: str = "label"  # column of the target; "a,b,c" = a column of 0 and 1 for each label
    problem: str = "auto"  # single_label | multi_label | regression | auto
    label_separator: str = ""  # splits one cell into several labels (multi_label in CSV and TSV)
    on_bad_row: str = "error"  # a row without usable text or label: error | skip (and count it)
    on_empty: str = "keep"  # a row whose text is empty: keep | skip | error
    on_leak: str = "warn"  # validation texts that also occur in training: warn | error
    on_single_class: str = "error"  # one label, while model or task have more: error | warn
    max_length: int = 128  # tokens per sequence, longer ones are cut; 0 = the model's maximum
    packing: str = "pack"  # pack = several sequences a row | pad = one sequence a row
    row_length: int = 0  # tokens per row; 0 = planned from the data's lengths


@with_options("heads")
@dataclasses.dataclass(frozen=True)
class Head:
    """What is predicted: a file of flaxbert/heads/."""

    name: str = "sequence"  # sequence: a target a text; token: a tag for each word


@dataclasses.dataclass(frozen=True)
class Train:
    batch_size: int = 32  # sequences per update, over all devices and hosts
    epochs: float = 3.0  # passes over the training data
    steps: int = 0  # updates; > 0 overrides epochs and sets the length of the schedule
    eval_every: int = 0  # updates between evaluations; 0 = once an epoch
    accumulate: int = 0  # micro-batches per update; 0 = as few as fit the device
    best_metric: str = ""  # metric that picks the best model; "" = the task's main metric
    patience: int = 0  # evaluations without improvement before stopping; 0 = never
    nonfinite_limit: int = 3  # updates in a row with a non-finite loss or gradient end the run


@with_options("optim")
@dataclasses.dataclass(frozen=True)
class Optim:
    """The options of every optimizer, then those of AdamW."""

    name: str = "adamw"  # a file of flaxbert/optim
    learning_rate: float = 5e-5  # peak
    schedule: str = "linear"  # after the warm-up: linear or cosine decay to 0, or constant
    warmup: float = 0.1  # < 1 is a fraction of all updates, otherwise a number of updates
    weight_decay: float = 0.01  # decoupled, times the learning rate; not for biases and LayerNorm
    clip_norm: float = 1.0  # global gradient norm; 0 = no clipping
    b1: float = 0.9  # AdamW: decay of the first moment
    b2: float = 0.999  # AdamW: decay of the second moment
    eps: float = 1e-8  # AdamW: added to the root of the second moment


@with_options("methods")
@dataclasses.dataclass(frozen=True)
class Method:
    name: str = "full"  # what is trained, a file of flaxbert/methods; full = every parameter


@dataclasses.dataclass(frozen=True)
class Loss:
    label_smoothing: float = 0.0  # as in torch.nn.CrossEntropyLoss; multi_label: towards 1/2
    class_weights: tuple[Any, ...] = ()  # by label id, LABEL=WEIGHT, balanced, a .json; () = all 1


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of the three may be -1 = all remaining devices."""

    data: int = -1
    fsdp: int = 1
    model: int = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every: int = 0  # updates between checkpoints; 0 = once an epoch
    keep: int = 2  # number of valid checkpoints to keep


@dataclasses.dataclass(frozen=True)
class Log:
    every: int = 20  # updates between log lines
    trackers: tuple[str, ...] = ("tensorboard",)  # in addition to console and metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Processes:
    """When a run of several processes ends itself."""

    lost_after: float = 20.0  # seconds without a heartbeat from a process; the others exit 71
    stuck_after: float = 1800.0  # seconds without a finished update or batch: all exit 70; 0 = off


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    seeds: Seeds = Seeds()
    model: Model = Model()
    data: Data = Data()
    head: Head = Head()
    train: Train = Train()
    method: Method = Method()
    optim: Optim = Optim()
    loss: Loss = Loss()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    processes: Processes = Processes()


# Sections that a resume may change: they do not affect what is learnt.
RESUME_MAY_CHANGE = ("mesh", "checkpoint", "log", "processes")

# Sections that name a member of a room and have the options of all its members.
BY_NAME = {"optim": "optim", "method": "methods", "head": "heads"}
# In the section itself, as they are older than the other optimizers.
_OF_ADAMW = ("optim.b1", "optim.b2", "optim.eps")

_CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("float32", "bfloat16", "auto"),
    "data.problem": ("single_label", "multi_label", "regression", "auto"),
    "data.packing": ("pack", "pad"),
    "data.on_bad_row": ("error", "skip"),
    "data.on_empty": ("keep", "skip", "error"),
    "data.on_leak": ("warn", "error"),
    "data.on_single_class": ("error", "warn"),
    "optim.schedule": members("optim/schedules"),
    "log.trackers": members("track"),
    **{f"{section}.name": members(room) for section, room in BY_NAME.items()},
}

# Smallest and largest, so that squares of unnormalised gradients fit float32 (loop/step.py).
CLASS_WEIGHTS = 1e-6, 1e6

# field: (smallest, largest, whether the smallest itself is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**32 - 1, True),
    "seeds.init": (-1, 2**32 - 1, True),
    "seeds.data": (-1, 2**32 - 1, True),
    "seeds.dropout": (-1, 2**32 - 1, True),
    "data.validation_fraction": (0, 0.9, True),
    "data.max_length": (0, 1_000_000, True),
    "data.row_length": (0, 1_000_000, True),
    "train.batch_size": (1, 1_000_000, True),
    "train.epochs": (0, 1_000_000, False),
    "train.steps": (0, 1_000_000_000, True),
    "train.eval_every": (0, 1_000_000_000, True),
    "train.accumulate": (0, 1_000_000, True),
    "train.patience": (0, 1_000_000, True),
    "train.nonfinite_limit": (1, 1_000_000, True),
    "optim.learning_rate": (0, 10, False),
    "optim.warmup": (0, 1_000_000_000, True),
    "optim.weight_decay": (0, 10, True),
    "optim.clip_norm": (0, 1e9, True),
    "optim.b1": (0, 0.9999999, True),
    "optim.b2": (0, 0.9999999, True),
    "optim.eps": (0, 1, False),
    "loss.label_smoothing": (0, 0.9999999, True),
    "mesh.data": (-1, 1_000_000, True),
    "mesh.fsdp": (-1, 1_000_000, True),
    "mesh.model": (-1, 1_000_000, True),
    "checkpoint.every": (0, 1_000_000_000, True),
    "checkpoint.keep": (1, 1_000_000, True),
    "log.every": (1, 1_000_000_000, True),
    "processes.lost_after": (3, 1_000_000, True),
    "processes.stuck_after": (0, 1_000_000, True),
}
_MEMBERS = {
    f"{section}.{name}": declared(room, name)
    for section, room in BY_NAME.items()
    for name in members(room)
}
_CHOICES |= {f"{m}.{field}": c for m, said in _MEMBERS.items() for field, c in said.choices.items()}
_RANGES |= {f"{m}.{field}": r for m, said in _MEMBERS.items() for field, r in said.ranges.items()}


def default_config() -> Any:
    """Returns a ConfigDict with every field at its default, for a config file to change."""
    import ml_collections

    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def make_config(values: Any) -> Config:
    """Builds the checked, frozen config from a ConfigDict or nested dict.

    Raises:
      ConfigError: an unknown field, a wrong type, a value out of range or fields that exclude
        each other.
    """
    as_dict = values.to_dict() if hasattr(values, "to_dict") else values
    config = _with_homes(_build(Config, as_dict, prefix=""))
    _check(config)
    return config


def _with_homes(config: Config) -> Config:
    """Expands ~ in paths, which a shell does not do behind "="."""
    fields = ("dataset", "train", "validation", "test")
    paths = {name: os.path.expanduser(getattr(config.data, name)) for name in fields}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **paths),
        model=dataclasses.replace(config.model, path=os.path.expanduser(config.model.path)),
    )


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the nested plain dict of a config (JSON-ready: tuples are lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"data.task": ...} of a nested dict."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def resume_differences(stored: Config, asked: Config) -> list[tuple[str, Any, Any]]:
    """Returns (field, old, new) of each field that differs although a resume may not change it."""
    old, new = flatten(to_dict(stored)), flatten(to_dict(asked))
    return [
        (name, old[name], new[name])
        for name in old
        if old[name] != new[name] and name.split(".")[0] not in RESUME_MAY_CHANGE
    ]


def seed_for(config: Config, purpose: str) -> int:
    """Returns the seed of "init", "data" or "dropout": its own field, or derived from `seed`."""
    own = getattr(config.seeds, purpose)
    if own >= 0:
        return own
    # Odd constants give the three purposes distinct seeds, also for the seeds 0, 1, 2.
    offset = {"init": 0x9E3779B1, "data": 0x85EBCA77, "dropout": 0xC2B2AE3D}[purpose]
    return (config.seed * 0x27D4EB2F + offset) % 2**32


def refuse_without_validation(train: Train) -> None:
    """Raises ConfigError if a field is set that has no effect without validation data."""
    for name in ("patience", "eval_every", "best_metric"):
        if getattr(train, name):
            raise ConfigError(
                f"config.train.{name} needs validation data: set config.data.validation or "
                "config.data.validation_fraction."
            )


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"config.{prefix.rstrip('.')}: expected fields, got {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f" Did you mean config.{prefix}{near[0]}?" if near else ""
            raise ConfigError(f"config.{prefix}{name}: there is no such field.{hint}")
    types = get_type_hints(cls)
    built = {}
    for name, value in values.items():
        expected = types[name]
        if dataclasses.is_dataclass(expected):
            built[name] = _build(expected, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            built[name] = _coerce(value, expected, f"{prefix}{name}")
    return cls(**built)


def _coerce(value: Any, expected: Any, name: str) -> Any:
    """Accepts exactly the field's type; ints count as floats, lists as tuples."""
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected in (int, float, str, bool) and type(value) is expected:
        return value
    if expected is Any:  # class weights
        return value if isinstance(value, str) else _coerce(value, float, name)
    if get_origin(expected) is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(item, get_args(expected)[0], name) for item in value)
    kinds = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "True or False",
        tuple[str, ...]: "names",
    }
    kind = kinds.get(expected, "numbers")
    raise ConfigError(f"config.{name}: expected {kind}, got {value!r}.")


def _check(config: Config) -> None:
    flat = flatten(dataclasses.asdict(config))
    for name, choices in _CHOICES.items():
        for value in flat[name] if isinstance(flat[name], tuple) else (flat[name],):
            if value not in choices:
                near = difflib.get_close_matches(value, choices, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"config.{name}: expected one of {', '.join(choices)}, got {value!r}.{hint}"
                )
    for name, (low, high, low_allowed) in _RANGES.items():
        value = flat[name]
        if not (low <= value <= high) or (value == low and not low_allowed):  # NaN fails too
            bound = f"at least {low}" if low_allowed else f"greater than {low}"
            raise ConfigError(
                f"config.{name}: expected a value {bound} and at most {high}, got {value!r}."
            )
    low, high = CLASS_WEIGHTS
    weights = [weight for weight in config.loss.class_weights if not isinstance(weight, str)]
    if weights and len(weights) < len(config.loss.class_weights):
        raise ConfigError(
            f"config.loss.class_weights: expected numbers, or names with numbers, got "
            f"{config.loss.class_weights}."
        )
    if any(not low <= weight <= high for weight in weights):  # NaN fails too
        raise ConfigError(
            f"config.loss.class_weights: expected positive numbers from {low:g} to {high:g} (only "
            f"their ratios matter), got {config.loss.class_weights}."
        )
    axes = dataclasses.asdict(config.mesh)
    if 0 in axes.values() or list(axes.values()).count(-1) > 1:
        raise ConfigError(
            f"config.mesh: expected positive sizes with at most one -1, got {axes}. "
            "Set the axes that you do not use to 1."
        )
    if config.data.validation and config.data.validation_fraction:
        raise ConfigError(
            "config.data.validation and config.data.validation_fraction exclude each other: "
            "set the fraction to 0 to use the file, or the file to '' to hold rows out."
        )
    if not _may_have_validation(config.data):
        refuse_without_validation(config.train)
    for name in ("text", "label"):
        if not getattr(config.data, name):
            raise ConfigError(f"config.data.{name} is empty: name a column of the file.")
    _refuse_options_of_others(config)


def _refuse_options_of_others(config: Config) -> None:
    """Raises ConfigError if an option of an optimizer etc. is set that the config does not name."""
    flat, defaults = flatten(dataclasses.asdict(config)), flatten(dataclasses.asdict(Config()))
    owners = {field: field.rpartition(".")[0] for field in flat if field.count(".") == 2}
    owners |= dict.fromkeys(_OF_ADAMW, "optim.adamw")
    for field, owner in owners.items():
        section = owner.partition(".")[0]
        named = flat[f"{section}.name"]
        if owner != f"{section}.{named}" and flat[field] != defaults[field]:
            raise ConfigError(
                f"config.{field}={flat[field]!r} has no effect: config.{section}.name is {named!r}."
            )


def _may_have_validation(data: Data) -> bool:
    """Whether there can be validation data; the splits of a data set are known only later."""
    own = data.task != "text" or data.dataset
    return bool(own or data.validation or data.validation_fraction)
