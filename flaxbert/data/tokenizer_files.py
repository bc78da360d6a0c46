"""The files that make up a tokenizer: which they are, and what of them a library gets to see.

The surprising thing: transformers is never shown a checkpoint's own folder. Its loaders follow file
names that stand in the settings and read whatever else lies there; so they get a copy of the known
files, with settings that name no other one.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from flaxbert.errors import ModelFileError
from flaxbert.storage.plain import refuse_outside

_SETTINGS = "tokenizer_config.json"
_MODEL = "config.json"

# What makes up a tokenizer; copied into the workdir and the exported folder as they are.
FILES = (
    "tokenizer.json",
    "vocab.txt",
    _SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
)

# A file becomes objects many times its size; the largest known has 20 MB.
_MAX_BYTES = 2**27
# Settings that name files or programs; older versions of transformers wrote some of them, with the
# paths of another machine.
_ENDINGS = ("_file", "_files", "_path", "_dir", "_kwargs")
_NAMES = ("name_or_path", "auto_map", "init_inputs", "chat_template")


def files_in(directory: Path) -> list[Path]:
    """Returns the tokenizer files that a model folder has."""
    return [directory / name for name in FILES if (directory / name).is_file()]


def refuse_unusable(directory: Path) -> None:
    """Refuses a folder without a vocabulary, with a link out of it, or with a far too large file.

    Raises:
      ModelFileError: says which.
    """
    if not any((directory / name).is_file() for name in FILES[:2]):
        raise ModelFileError(
            f"{directory}: has neither tokenizer.json nor vocab.txt. Copy the tokenizer "
            "files of the checkpoint there."
        )
    refuse_outside(directory)
    for path in files_in(directory):
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFileError(
                f"{path}: has {path.stat().st_size} bytes, expected at most {_MAX_BYTES}."
            )


def written_tokens(directory: Path) -> Container[str]:
    """Returns the tokens that stand in the files themselves, in tokenizer.json if there is one.

    Raises:
      ModelFileError: the file cannot be read, or vocab.txt starts with a byte order mark, which
        would become a part of its first token.
    """
    path = next(p for name in FILES[:2] if (p := directory / name).is_file())
    try:
        data = path.read_bytes()
        if path.name == FILES[0]:
            values = json.loads(data)
            added = [token["content"] for token in values.get("added_tokens") or ()]
            return {*values["model"]["vocab"], *added}
        text = data.decode()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(directory, error) from error
    if text.startswith("\ufeff"):
        raise ModelFileError(
            f"{path}: starts with a byte order mark. Save it as UTF-8 without one: "
            f"sed -i '1s/^\\xef\\xbb\\xbf//' {path}"
        )
    return {line.rstrip() for line in text.split("\n")}


@contextlib.contextmanager
def plain_copy(directory: Path) -> Iterator[Path]:
    """Yields a temporary folder with the tokenizer files and what config.json says about the class.

    Raises:
      ValueError, OSError: a file that cannot be read.
      ModelFileError: the copy cannot be written.
    """
    contents = _plain_contents(directory)
    with contextlib.ExitStack() as stack:
        try:
            temporary = tempfile.TemporaryDirectory(prefix="flaxbert-tokenizer-")
            copy = Path(stack.enter_context(temporary))
            for name, data in contents.items():
                (copy / name).write_bytes(data)
        except OSError as error:
            raise ModelFileError(
                f"{tempfile.tempdir or 'temporary files'}: cannot be written: {error.strerror}. "
                "Make room there, or name another folder for temporary files in TMPDIR."
            ) from error
        yield copy


def unreadable(directory: Path, error: BaseException) -> ModelFileError:
    """Returns one readable line for whatever a parser raised."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelFileError(
        f"{directory}: the tokenizer files cannot be read: {type(error).__name__}: {reason[:200]}. "
        "Copy those of the checkpoint again."
    )


def _plain_contents(directory: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for path in files_in(directory):
        data = path.read_bytes()
        if path.name in (_SETTINGS, "special_tokens_map.json"):
            data = json.dumps(_plain_settings(json.loads(data))).encode()
        contents[path.name] = data
    if (directory / _MODEL).is_file():
        values = json.loads((directory / _MODEL).read_bytes())
        known = {name: values[name] for name in ("tokenizer_class",) if name in values}
        contents[_MODEL] = json.dumps({"model_type": "bert", **known}).encode()
    return contents


def _plain_settings(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ValueError("the settings are no object")
    return {
        name: value
        for name, value in settings.items()
        if not name.endswith(_ENDINGS) and name not in _NAMES
    }
