"""Which file of a model folder holds the weights, and what reads it: one list for every format.

The surprising thing: the order of the list is the order of trust. Of a folder with several formats
the first one is read; if it is damaged that is an error, never a reason to try the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from flaxbert.errors import ModelFileError
from flaxbert.heads import head_of
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.binding import Params
from flaxbert.storage.plain import refuse_outside
from flaxbert.weights import table
from flaxbert.weights.formats import flax_msgpack, orbax_folder, pytorch_bin, safetensors_file, tf1
from flaxbert.weights.shards import Tensors
from flaxbert.weights.table import Assembled


@dataclasses.dataclass(frozen=True)
class Format:
    """A format: how to tell that a folder has it, its files, and its reader."""

    name: str
    files: tuple[tuple[str, ...], ...]  # patterns; the first alternative that is there is whole
    is_in: Callable[[Path], bool]
    assemble: Callable[[BertConfig, Path], Assembled]


def _files(whole: str, stem: str, suffix: str) -> tuple[tuple[str, ...], ...]:
    return (whole,), (f"{whole}.index.json", f"{stem}-*-of-*.{suffix}")


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda directory: any((directory / name).is_file() for name in names)


def _named(read: Callable[[Path], Tensors]) -> Callable[[BertConfig, Path], Assembled]:
    return lambda config, directory: table.assemble(config, read(directory), str(directory))


FORMATS = (
    Format(
        "safetensors",
        _files(safetensors_file.WEIGHTS, "model", "safetensors"),
        _has(safetensors_file.WEIGHTS, safetensors_file.INDEX),
        _named(safetensors_file.read_safetensors),
    ),
    Format(
        "PyTorch",
        _files(pytorch_bin.WEIGHTS, "pytorch_model", "bin"),
        _has(pytorch_bin.WEIGHTS, pytorch_bin.INDEX),
        _named(pytorch_bin.read_pytorch),
    ),
    Format(
        "Flax",
        _files(flax_msgpack.WEIGHTS, "flax_model", "msgpack"),
        _has(flax_msgpack.WEIGHTS, flax_msgpack.INDEX),
        _named(flax_msgpack.read_flax),
    ),
    Format(
        "TensorFlow 1",
        (("*ckpt*.index", "*ckpt*.data-*-of-*"),),
        lambda directory: bool(tf1.find_tf1(directory)),
        _named(tf1.read_tf1),
    ),
    Format(
        "Orbax",
        (("params/*",),),
        orbax_folder.holds_orbax,
        orbax_folder.assemble_orbax,
    ),
)


def _write_pytorch(directory: Path, config: BertConfig, params: Params) -> None:
    tensors = table.to_torch(config, params)
    if head_of(config).prefix not in params:
        tensors = {name.removeprefix("bert."): array for name, array in tensors.items()}
    safetensors_file.write_safetensors(directory / safetensors_file.WEIGHTS, tensors)


def _write_flax(directory: Path, config: BertConfig, params: Params) -> None:
    tree = params if head_of(config).prefix in params else params["bert"]
    flax_msgpack.write_flax(directory / flax_msgpack.WEIGHTS, tree)


# The formats of `convert`, the default first. Numpy arrays go in; PyTorch reads safetensors.
WRITERS: dict[str, Callable[[Path, BertConfig, Params], None]] = {
    "pytorch": _write_pytorch,
    "flax": _write_flax,
    "orbax": lambda directory, config, params: orbax_folder.write_orbax(directory, params),
}

_TF_ADVICE = (
    "Convert it with transformers 4 and TensorFlow: "
    "BertForSequenceClassification.from_pretrained(FOLDER, from_tf=True).save_pretrained(NEW)."
)


def weight_patterns() -> list[tuple[str, ...]]:
    """Returns shell patterns of the files that a repository's weights may have, the safest format
    first; where the first of a tuple matches, all that match are the weights.

    Orbax is not among them: its files may not be the links that the hub's cache is made of.
    """
    return [patterns for form in FORMATS if form.name != "Orbax" for patterns in form.files]


def assemble(config: BertConfig, directory: Path) -> tuple[Assembled, list[str]]:
    """Reads the weights of a model folder, and says what else was there.

    Raises:
      ModelFileError: no weights that can be read, or weights that are damaged, do not fit, or
        stand outside of the folder.
    """
    refuse_outside(directory)
    present = [form for form in FORMATS if form.is_in(directory)]
    if not present:
        raise ModelFileError(f"{directory}: {_why_none(directory)}")
    chosen, *others = present
    notes = []
    if others:
        notes.append(
            f"read the {chosen.name} weights; those for {', '.join(form.name for form in others)} "
            "in the same folder were not looked at"
        )
    return chosen.assemble(config, directory), notes


def _why_none(directory: Path) -> str:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    names = [path.name for path in files]
    if "tf_model.h5" in names:
        return f"has only tf_model.h5, the weights of Keras, which are not read. {_TF_ADVICE}"
    if any(path.name.startswith("adapter_model") for path in files):
        return "has only an adapter. Merge it into its base model, and name the merged folder."
    for path in files:
        if ".ckpt" in path.name and tf1.is_v1(path):
            return (
                f"{path.name} is a TensorFlow checkpoint of the format before 2017 (one file, no "
                ".index), which is not read. Save it again with a tf.train.Saver of TensorFlow 1."
            )
    if (directory / "saved_model.pb").is_file():
        return f"has a TensorFlow SavedModel, which is not read. {_TF_ADVICE}"
    steps = [path.name for path in directory.glob("checkpoints/*") if path.name.isdecimal()]
    if steps:
        newest = directory / "checkpoints" / max(steps, key=int)
        return f"is a run that has no model/ yet. Name one of its checkpoints, as {newest}."
    expected = ", ".join(form.files[0][0] for form in FORMATS)
    return (
        f"has no weights that can be read: expected one of {expected} "
        f"(found {', '.join(names[:8]) or 'no'} files)."
    )
