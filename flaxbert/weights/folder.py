"""A Hugging Face model folder: read into config and parameters, and written from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from flaxbert.errors import ModelFileError
from flaxbert.heads import Params, all_heads, head_of, init_params
from flaxbert.model.bert_config import BertConfig
from flaxbert.storage.parameters import description_of
from flaxbert.storage.workdir import copy_file, read_json, write_atomically, write_json
from flaxbert.weights import foreign, formats, table

_CONFIG_NAMES = ("config.json", "bert_config.json")  # Hugging Face's, Google's
_CROSS_ENCODER = "config_sentence_transformers.json"  # has the activation of a CrossEncoder


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model as read, and notes for the user about what was changed or left out."""

    config: BertConfig
    params: Params  # float32 numpy arrays
    notes: tuple[str, ...]
    fresh: tuple[str, ...]  # PyTorch names of parameters that were initialised, or are absent


def read_config(directory: Path) -> tuple[BertConfig, list[str]]:
    """Returns the config of a model folder and the names of fields that were not used.

    A class that is no head's stands for the sequence classifier.
    Raises ModelFileError if there is no config.json, or a field has an unsupported value.
    """
    config, ignored = _stated_config(directory)
    if config.architecture not in {head.architecture for head in all_heads().values()}:
        config = dataclasses.replace(config, architecture=BertConfig.architecture)
    return config, ignored


def _stated_config(directory: Path) -> tuple[BertConfig, list[str]]:
    """Returns what `read_config` does, with the class that the folder names."""
    directory = description_of(directory)
    if not directory.is_dir():
        what = "is not a folder; name the one that holds it" if directory.exists() else "is missing"
        raise ModelFileError(f"{directory}: {what}.")
    for name in _CONFIG_NAMES:
        if (directory / name).is_file():
            values = read_json(directory / name)
            if isinstance(values, dict) and (directory / _CROSS_ENCODER).is_file():
                stated = read_json(directory / _CROSS_ENCODER)
                if isinstance(stated, dict) and stated.get("activation_fn"):
                    values["sentence_transformers"] = stated
            try:
                return BertConfig.from_dict(values)
            except ModelFileError as error:
                raise ModelFileError(f"{directory / name}: {error}") from error
    readable = any(form.holds(directory) for form in formats.members())
    why = "" if readable else formats.advice(directory)
    said = why or "has no config.json (or Google's bert_config.json)."
    raise ModelFileError(f"{directory}: {said}")


def why_untrained(directory: Path, config: BertConfig, fresh: Sequence[str]) -> str:
    """Returns why a model folder lacks the parameters `fresh`, and what to do."""
    if elsewhere := foreign.head_elsewhere(directory):
        return elsewhere
    architecture = _stated_config(directory)[0].architecture
    if architecture not in (config.architecture, "BertModel"):
        return (
            f"its head is {architecture}'s: there is no trained classifier "
            f"({config.architecture}) in it. Name another model, or train one from it."
        )
    return f"has no trained classifier ({', '.join(fresh)} missing). Train it first."


def with_labels(
    config: BertConfig,
    names: Sequence[str] | None,
    problem_type: str | None = None,
    architecture: str | None = None,
) -> BertConfig:
    """Returns the config for other labels, or another head; None keeps what it has.

    The activation of a cross-encoder is kept with the number and the meaning of its outputs.
    """
    id2label = None if names is None else tuple(names)
    given = {"id2label": id2label, "problem_type": problem_type, "architecture": architecture}
    made = dataclasses.replace(config, **{n: v for n, v in given.items() if v is not None})
    same = (config.num_labels, config.architecture) == (made.num_labels, made.architecture)
    if problem_type is None and same:
        return made
    return dataclasses.replace(made, output_activation=None)


def read_model(
    directory: Path,
    config: BertConfig,
    seed: int,
    ignored: Sequence[str],
    *,
    keep_head: bool = False,
) -> Loaded:
    """Reads the weights of a folder for `config`; a missing pooler or head is initialised.

    Args:
      directory: the model folder, in any format of `flaxbert.weights.formats`.
      config: what to read them as; labels may differ from the folder's own.
      seed: of the fresh values.
      ignored: fields of config.json that were not used, for the notes.
      keep_head: see `read_weights`.

    Raises ModelFileError if there are no weights, or they do not fit the config.
    """
    read = read_weights(directory, config, ignored, keep_head=keep_head)
    config = read.config
    if not read.fresh:
        return read
    paths = tuple(entry.path for entry in table.entries(config) if entry.name in read.fresh)
    fresh = init_params(config, seed, paths=paths)
    flat = table.flatten(read.params) | jax.device_get(fresh)
    note = f"freshly initialised, to be trained: {', '.join(read.fresh)}"
    return Loaded(config, table.unflatten(flat), (*read.notes, note), read.fresh)


def read_weights(
    directory: Path, config: BertConfig, ignored: Sequence[str], *, keep_head: bool = False
) -> Loaded:
    """Reads what the folder has, as `read_model` does; a missing pooler or head stays absent.

    With `keep_head` a head of another size than the config says decides the number of labels, if
    the config has no names for them: Google's bert_config.json never says how many there are.
    """
    form, notes = formats.find(directory)
    tensors = form.read(directory)
    if form.flax_names:
        tensors = table.from_flax(tensors, str(directory))
    # A head of another class is not used, though its shape may fit.
    architecture = _stated_config(directory)[0].architecture
    read = table.assemble(config, tensors, str(directory), architecture=architecture)
    if read.resized and keep_head and not config.has_label_names:
        names = tuple(f"LABEL_{i}" for i in range(read.resized))
        config = dataclasses.replace(config, id2label=names)
        notes.append(f"the head has {read.resized} labels, which its config does not name")
        read = table.assemble(config, tensors, str(directory), architecture=architecture)
    if read.unused:
        notes.append(f"its head ({_tops(read.unused)}) is {architecture}'s, and is not used")
    elif architecture != config.architecture and head_of(config).prefix in read.params:
        notes.append(f"its class {architecture} is read as {config.architecture}")
    if ignored:
        notes.append(f"config.json has fields that BERT does not: {', '.join(ignored)} (not used)")
    if read.dropped:
        notes.append(
            f"left out {_tops(read.dropped)} ({len(read.dropped)} parameters), which this model "
            "does not have"
        )
    if read.resized:
        notes.append(f"the checkpoint's head has another number of labels than {config.num_labels}")
    return Loaded(config, read.params, tuple(notes), read.fresh)


def _tops(names: Sequence[str]) -> str:
    tops = sorted({name.removeprefix("bert.").partition(".")[0] for name in names})
    return ", ".join(f"{top}.*" for top in tops)


def write_model(
    directory: Path,
    config: BertConfig,
    params: Params,
    tokenizer_files: Sequence[Path],
    *,
    card: str = "",
    format: str = "pytorch",
) -> None:
    """Writes config.json, the weights, the tokenizer files and README.md into a folder.

    `format` is a name of `formats.writers()`. Parameters without a head are written as
    transformers' `BertModel` is: its names have no prefix.
    """
    directory.mkdir(parents=True, exist_ok=True)
    host = jax.device_get(params)
    values = config.to_dict()
    form = formats.writers()[format]
    named = table.flatten(host) if form.flax_names else table.to_torch(config, host)
    if head_of(config).prefix not in host:
        values["architectures"] = ["BertModel"]
        prefix = "bert/" if form.flax_names else "bert."
        named = {name.removeprefix(prefix): array for name, array in named.items()}
    form.write(directory, named)
    for path in tokenizer_files:
        if path.parent.resolve() != directory.resolve():
            copy_file(path, directory)
    if card:
        write_atomically(directory / "README.md", card.encode())
    write_json(directory / "config.json", values)
