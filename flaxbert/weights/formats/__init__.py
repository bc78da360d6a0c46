"""The contract of a weight format, and which format of a model folder is read.

The modules of this folder are the registry: each has a `FORMAT`. The files fetched from a hub, the
choices of `convert --format` and the names in messages all follow from it, so a new format is one
new file (and its row in docs/formats.md, which the conformance suite asks for).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.weights import foreign

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """One format. Its functions take a folder and pick their own files from it.

    `load` may raise ModelFileError or any OSError. Its memory is bounded by the size of the files,
    whatever they declare, and it runs no code that they name.
    """

    name: str  # in messages
    rank: int  # order of trust: of a folder with several formats the lowest is read
    # Shell patterns; the first alternative whose first pattern is in a folder is all its weights.
    files: tuple[tuple[str, ...], ...]
    load: Callable[[Path], Tensors]
    store: Callable[[Path, Tensors], None] | None = None
    option: str = ""  # its name for `convert --format`, where it can be written
    # Names and layout of the arrays: a Flax tree's ("a/kernel", [inputs, outputs]) or PyTorch's
    # ("a.weight", [outputs, inputs]).
    flax_names: bool = False
    on_hub: bool = True  # whether it is fetched from a hub, whose cache consists of links
    # Says what to do about weights of a similar format that cannot be read; "" = there are none.
    advise: Callable[[Path], str] = lambda _: ""
    also_in: Callable[[Path], bool] = lambda _: False  # other folders that hold it

    def holds(self, directory: Path) -> bool:
        """Whether a folder has weights in this format."""
        return self.also_in(directory) or any(
            any(path.is_file() for path in directory.glob(first)) for first, *_ in self.files
        )

    def read(self, directory: Path) -> Tensors:
        """Returns every array of a folder; ModelFileError if the files cannot be read."""
        try:
            return self.load(directory)
        except ModelFileError:
            raise
        except OSError as error:
            path, what = error.filename or directory, error.strerror or error
            raise ModelFileError(f"{path}: cannot be read: {what}.") from error

    def write(self, directory: Path, tensors: Tensors) -> None:
        """Writes arrays, named and laid out as this format has them, into a folder."""
        assert self.store is not None
        self.store(directory, tensors)


@functools.cache
def members() -> tuple[WeightFormat, ...]:
    """Returns all formats, the most trusted first."""
    names = [found.name for found in pkgutil.iter_modules(__path__)]
    modules = (importlib.import_module(f"{__name__}.{name}") for name in names)
    return tuple(sorted((module.FORMAT for module in modules), key=lambda form: form.rank))


def writers() -> dict[str, WeightFormat]:
    """Returns what can be written by its name for `convert --format`, the default first."""
    return {form.option: form for form in members() if form.store}


def hub_patterns() -> list[tuple[str, ...]]:
    """Returns shell patterns of weight files in a repository, the safest format first; if the first
    pattern of a tuple matches, all files that match the tuple are the weights."""
    return [patterns for form in members() if form.on_hub for patterns in form.files]


def find(directory: Path) -> tuple[WeightFormat, list[str]]:
    """Returns the format of a model folder's weights, and a note where it has several.

    Note: if the first is damaged that is an error, never a reason to try the next. Raises
    ModelFileError if there are no known weights.
    """
    present = [form for form in members() if form.holds(directory)]
    if not present:
        raise ModelFileError(f"{directory}: {advice(directory) or _none_of(directory)}")
    chosen, *others = present
    notes = []
    if others:
        notes.append(
            f"read the {chosen.name} weights; those for {', '.join(form.name for form in others)} "
            "in the same folder were not looked at"
        )
    if any(directory.glob("adapter_model.*")):
        notes.append("an adapter in the same folder was not used: the model is read without it")
    return chosen, notes


def advice(directory: Path) -> str:
    """Returns what to do about a folder without weights that can be read; "" = nothing known."""
    inside = [
        path.parent
        for pattern in ("*/config.json", "*/bert_config.json", "snapshots/*/config.json")
        for path in directory.glob(pattern)
        if any(form.holds(path.parent) for form in members())
    ]
    if said := foreign.kind_of(directory):
        return said
    if inside:
        newest = sorted(inside, key=lambda path: (len(path.name), path.name))[-5:]
        return f"has no model itself, but in {', '.join(map(str, newest))}. Name such a folder."
    return next(filter(None, (form.advise(directory) for form in members())), "")


def _none_of(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    expected = ", ".join(form.files[0][0] for form in members())
    return (
        f"has no weights that can be read: expected one of {expected} "
        f"(found {', '.join(names[:8]) or 'no'} files)."
    )
