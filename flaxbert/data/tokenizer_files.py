"""The files of a tokenizer: checked, loaded by transformers, and written for an export.

Note: transformers gets a copy of a checkpoint's tokenizer files, never the folder itself. Its
loaders open any file that the settings name (`gguf_file`, `vocab`, `fast_tokenizer_files`; in
special_tokens_map.json also `tokenizer_file`), wherever it is, and any chat template.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path, PurePath
from typing import Any

from flaxbert.errors import ModelFileError, first_line
from flaxbert.storage.workdir import read_json, to_json, write_atomically

_SETTINGS = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"

FILES = ("tokenizer.json", "vocab.txt", _SETTINGS, _SPECIAL, "added_tokens.json")

# Parsed files take many times their size in memory; the largest known file has 20 MB.
_MAX_BYTES = 2**27
# Settings that may be strings, lists or objects: they hold tokens or choose one of a few options,
# and never name a file or a program.
_ENDINGS = ("_token", "_tokens", "_tokens_decoder", "_class", "_side", "_type")
_DICTIONARIES = ("ipadic", "unidic_lite", "unidic")  # of MeCab, installed as Python packages
# Settings of how this process loaded the tokenizer, not of the tokenizer itself.
_NOT_EXPORTED = (
    *("is_local", "local_files_only", "backend"),
    *("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"),
)


def files_in(directory: Path) -> list[Path]:
    """Returns the tokenizer files that a model folder has."""
    return [directory / name for name in FILES if (directory / name).is_file()]


def refuse_unusable(directory: Path) -> None:
    """Raises ModelFileError if it has no vocabulary, or a far too large file."""
    if not any((directory / name).is_file() for name in FILES[:2]):
        raise ModelFileError(
            f"{directory}: has neither tokenizer.json nor vocab.txt. Copy the tokenizer "
            "files of the checkpoint there."
        )
    for path in files_in(directory):
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFileError(
                f"{path}: has {path.stat().st_size} bytes, expected at most {_MAX_BYTES}."
            )


def read_vocabulary(directory: Path) -> tuple[Container[str], Mapping[str, Any]]:
    """Returns the tokens in the files themselves, and the parts of tokenizer.json.

    Raises ModelFileError if the file cannot be read, or vocab.txt starts with a byte order mark,
    which would become a part of its first token.
    """
    path = next(p for name in FILES[:2] if (p := directory / name).is_file())
    try:
        data = path.read_bytes()
        if path.name == FILES[0]:
            values = json.loads(data)
            added = [token["content"] for token in values.get("added_tokens") or ()]
            tokens = values["model"]["vocab"]
            if isinstance(tokens, list):  # with scores
                tokens = [token for token, _ in tokens]
            return {*tokens, *added}, values
        text = data.decode()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(directory, error) from error
    if text.startswith("\ufeff"):
        raise ModelFileError(
            f"{path}: starts with a byte order mark. Save it as UTF-8 without one: "
            f"sed -i '1s/^\\xef\\xbb\\xbf//' {path}"
        )
    return {line.rstrip() for line in text.split("\n")}, {}


def load_tokenizer(directory: Path) -> Any:
    """Returns the tokenizer that transformers' AutoTokenizer makes of a BERT folder.

    Raises ModelFileError if the files cannot be read, or their tokenizer class cannot be used.
    """
    # Imported here: it takes a second, and evaluation of token rows does not need it.
    from transformers.utils import logging as hf_logging

    contents, name = _visible(directory)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # advice about classes that are not used here
    with tempfile.TemporaryDirectory(prefix="flaxbert-tokenizer-") as copy:
        for file, data in contents.items():
            Path(copy, file).write_bytes(data)
        try:
            tokenizer = _class_named(name).from_pretrained(copy, local_files_only=True)
        except BaseException as error:
            # Its parsers raise anything; a panic of the Rust one is not even an Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if FILES[0] not in contents and name not in ("BertTokenizer", "BertTokenizerFast"):
                raise ModelFileError(
                    f"{directory}: the tokenizer class {name} cannot be used: {first_line(error)}. "
                    "A class that is not transformers' own is a program, which is not run: save a "
                    "tokenizer.json from it where it runs, and put that beside the model."
                ) from error
            raise _unreadable(directory, error) from error
        finally:
            hf_logging.set_verbosity(verbosity)
    if tokenizer.is_fast:  # all-MiniLM-L6-v2 truncates and pads to 128; here the run decides
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def warnings_about(directory: Path, tokenizer: Any, parts: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns lines about suspicious settings; `parts` are those of tokenizer.json."""
    casing = _casing_warnings(directory, tokenizer)
    return (*casing, *_splitting_warnings(directory, tokenizer, parts))


def exported_files(tokenizer: Any, directory: Path, max_length: int) -> dict[str, bytes]:
    """Returns the tokenizer files of an exported model by name; they give the same tokenizer.

    They have a tokenizer.json, without truncation and padding, if the tokenizer is one of the
    tokenizers library; `max_length` becomes model_max_length. A vocab.txt of `directory` is kept,
    for programs that read nothing else.
    """
    with tempfile.TemporaryDirectory(prefix="flaxbert-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in files_in(Path(folder))}
    settings = json.loads(files[_SETTINGS])
    settings = {name: settings[name] for name in settings if name not in _NOT_EXPORTED}
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 4 cannot read that
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    files[_SETTINGS] = (to_json(settings | {"model_max_length": max_length}) + "\n").encode()
    if (directory / FILES[1]).is_file():
        files[FILES[1]] = (directory / FILES[1]).read_bytes()
    return files


def write_files(files: Mapping[str, bytes], directory: PurePath) -> None:
    """Writes files into a folder, on disk or in a bucket."""
    for name, data in files.items():
        write_atomically(directory / name, data)


def _class_named(name: str) -> Any:
    """Returns the tokenizer class that AutoTokenizer takes for BERT with this `tokenizer_class`.

    AutoTokenizer itself would import PyTorch where it is installed, which takes as long as the rest
    of a start.
    """
    import transformers

    for known in (name, name.removesuffix("Fast")) if "Tokenizer" in name else ():
        found = getattr(transformers, known, None)
        generic = (transformers.PreTrainedTokenizer, transformers.PreTrainedTokenizerFast)
        if isinstance(found, type) and found not in generic:
            return found
    return transformers.PreTrainedTokenizerFast  # tokenizer.json as it stands


def _visible(directory: Path) -> tuple[dict[str, bytes], str]:
    """Returns the files to show to transformers, and the name of the tokenizer's class."""
    contents, name = {}, ""
    try:
        for path in files_in(directory):
            data = path.read_bytes()
            if path.name in (_SETTINGS, _SPECIAL):
                settings = _plain_settings(path, json.loads(data))
                name = name or str(settings.get("tokenizer_class") or "")
                data = json.dumps(settings).encode()
            contents[path.name] = data
        if not name and (directory / "config.json").is_file():
            name = str(read_json(directory / "config.json").get("tokenizer_class") or "")
    except ModelFileError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(directory, error) from error
    return contents, name or "BertTokenizer"


def _plain_settings(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings without those that could name a file or a program.

    Raises ModelFileError for options of another program, without which tokens would differ.
    """
    plain = {}
    for name, value in settings.items():
        options = {k: v for k, v in value.items() if v} if isinstance(value, dict) else {}
        simple = isinstance(value, bool | int | float | None)
        if simple or name.endswith(_ENDINGS) or name == "never_split":
            plain[name] = value
        elif name == "mecab_kwargs" and options.get("mecab_dic") in _DICTIONARIES:
            plain[name] = {"mecab_dic": options.pop("mecab_dic")}
        if name.endswith("_kwargs") and options:
            raise ModelFileError(
                f"{path}: {name} has {', '.join(options)}: options for another program, which "
                "are not passed on. Choose a model without them."
            )
    return plain


def _casing_warnings(directory: Path, tokenizer: Any) -> tuple[str, ...]:
    """Warns of a cased vocabulary with a tokenizer that lower-cases, or the reverse: transformers
    lower-cases unless the files say otherwise, also for cased models."""
    words = [
        word for token in tokenizer.get_vocab() if (word := token.removeprefix("##"))[:1].isalpha()
    ]
    capitals = sum(word != word.lower() for word in words)
    lowers = getattr(tokenizer, "do_lower_case", False)
    if tokenizer.is_fast:
        normalizer = tokenizer.backend_tokenizer.normalizer
        lowers = normalizer is not None and normalizer.normalize_str("A") == "a"
    advice = f'"do_lower_case": {json.dumps(not lowers)} in {directory / "tokenizer_config.json"}'
    if lowers and capitals > 0.01 * len(words):
        return (
            f"tokenizer: WARNING: {capitals} of {len(words)} words of the vocabulary have capital "
            f"letters, but texts are lower-cased. For a cased model set {advice}",
        )
    if not lowers and not capitals and any(word.isascii() for word in words):
        return (
            "tokenizer: WARNING: no word of the vocabulary has a capital letter, but texts keep "
            f"theirs and become unknown. For an uncased model set {advice}",
        )
    return ()


def _splitting_warnings(
    directory: Path, tokenizer: Any, parts: Mapping[str, Any]
) -> tuple[str, ...]:
    """Warns of a tokenizer.json that splits texts differently from transformers' BertTokenizer:
    servers that read the file itself use the file's rules."""
    for name in ("normalizer", "pre_tokenizer"):
        used = getattr(tokenizer.backend_tokenizer, name) if tokenizer.is_fast and parts else None
        used = json.loads(used.__getstate__()) if used is not None else None
        if parts and used != parts.get(name):
            return (
                f"tokenizer: WARNING: tokenizer.json has another {name} than transformers uses "
                f"for {type(tokenizer).__name__}. The latter is used, and exported; to use the "
                f'file as it is, set "tokenizer_class": "PreTrainedTokenizerFast" in '
                f"{directory / 'tokenizer_config.json'}",
            )
    return ()


def _unreadable(directory: Path, error: BaseException) -> ModelFileError:
    """Returns one readable line for whatever a parser raised."""
    return ModelFileError(
        f"{directory}: the tokenizer files cannot be read: {type(error).__name__}: "
        f"{first_line(error)}. Copy those of the checkpoint again."
    )
