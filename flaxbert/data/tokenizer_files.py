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

from flaxbert.data.unigram_scores import respelled
from flaxbert.errors import ModelFileError, first_line
from flaxbert.storage.workdir import read_json, to_json, write_atomically

_SETTINGS = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")  # each has tokens and their ids
FILES = (*VOCABULARIES, "merges.txt", _SETTINGS, _SPECIAL, "added_tokens.json")

# Parsed files take many times their size in memory; the largest known file has 20 MB.
_MAX_BYTES = 2**27
# Settings that may be strings, lists or objects: they hold tokens or choose one of a few options,
# and never name a file or a program.
_ENDINGS = ("_token", "_tokens", "_tokens_decoder", "_class", "_side", "_type")
_LISTS = ("never_split", "model_input_names")
# Options of the programs that split Japanese words: beside these only true, false and null.
_WORD_OPTIONS = {
    "mecab_dic": ("ipadic", "unidic_lite", "unidic"),  # installed as Python packages
    "sudachi_split_mode": ("A", "B", "C"),
    "sudachi_dict_type": ("small", "core", "full"),
}
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
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise ModelFileError(
            f"{directory}: has neither tokenizer.json nor vocab.txt. "
            + _converted(directory, "Copy the tokenizer files of the checkpoint there.")
        )
    for path in files_in(directory):
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFileError(
                f"{path}: has {path.stat().st_size} bytes, expected at most {_MAX_BYTES}."
            )


def read_vocabulary(directory: Path) -> tuple[Mapping[str, int], Mapping[str, Any]]:
    """Returns the token ids in the files themselves, and the parts of tokenizer.json.

    Raises ModelFileError if the file cannot be read, or vocab.txt starts with a byte order mark,
    which would become a part of its first token.
    """
    path = next(p for name in VOCABULARIES if (p := directory / name).is_file())
    try:
        tokens, parts = ids_in(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(directory, error) from error
    if path.suffix == ".txt" and next(iter(tokens)).startswith("\ufeff"):
        raise ModelFileError(
            f"{path}: starts with a byte order mark. Save it as UTF-8 without one: "
            f"sed -i '1s/^\\xef\\xbb\\xbf//' {path}"
        )
    return tokens, parts


def ids_in(path: Path) -> tuple[dict[str, int], Mapping[str, Any]]:
    """Returns the token ids in one of the VOCABULARIES, and the parts of a tokenizer.json."""
    text = path.read_bytes().decode()
    if path.suffix == ".txt":
        return {line.rstrip(): number for number, line in enumerate(text.split("\n"))}, {}
    values = json.loads(text)
    if path.name == "vocab.json":
        return dict(values.items()), {}
    added = {token["content"]: token["id"] for token in values.get("added_tokens") or ()}
    tokens = values["model"]["vocab"]
    if isinstance(tokens, list):  # with scores
        tokens = {token: number for number, (token, _) in enumerate(tokens)}
    return tokens | added, values


def load_tokenizer(directory: Path) -> Any:
    """Returns the tokenizer that transformers' AutoTokenizer makes of a BERT folder.

    Raises ModelFileError if the files cannot be read, or their tokenizer class cannot be used.
    """
    # Imported here: it takes a second, and evaluation of token rows does not need it.
    from transformers.utils import logging as hf_logging

    contents, settings = _visible(directory)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # advice about classes that are not used here
    with tempfile.TemporaryDirectory(prefix="flaxbert-tokenizer-") as copy:
        for file, data in contents.items():
            Path(copy, file).write_bytes(data)
        try:
            kind = _class_named(settings["tokenizer_class"])
            _refuse_missing_files(directory, contents, settings["tokenizer_class"], kind)
            tokenizer = kind.from_pretrained(copy, local_files_only=True)
        except ModelFileError:
            raise
        except BaseException as error:
            # Its parsers raise anything; a panic of the Rust one is not even an Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise _unusable(directory, settings, error) from error
        finally:
            hf_logging.set_verbosity(verbosity)
    if tokenizer.is_fast:  # all-MiniLM-L6-v2 truncates and pads to 128; here the run decides
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def exported_files(tokenizer: Any, directory: Path, max_length: int) -> dict[str, bytes]:
    """Returns the tokenizer files of an exported model by name; they give the same tokenizer.

    They have a tokenizer.json, without truncation and padding, if the tokenizer is one of the
    tokenizers library; `max_length` becomes model_max_length. A vocab.txt, or vocab.json and
    merges.txt, of `directory` is kept for programs that read nothing else, if its ids are these.
    """
    with tempfile.TemporaryDirectory(prefix="flaxbert-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in files_in(Path(folder))}
    if tokenizer.is_fast and type(tokenizer.backend_tokenizer.model).__name__ == "Unigram":
        files[FILES[0]] = respelled(files[FILES[0]])
    settings = json.loads(files[_SETTINGS])
    settings = {name: settings[name] for name in settings if name not in _NOT_EXPORTED}
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 4 cannot read that
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    # The default of transformers 4 has token types for every class.
    settings["model_input_names"] = list(tokenizer.model_input_names)
    files[_SETTINGS] = (to_json(settings | {"model_max_length": max_length}) + "\n").encode()
    others = disagreements(directory, tokenizer)
    for name in ("vocab.txt", "vocab.json", "merges.txt"):
        whole = "vocab.json" if name == "merges.txt" else name  # the two are one vocabulary
        if (directory / name).is_file() and whole not in others:
            files[name] = (directory / name).read_bytes()
    return files


def disagreements(directory: Path, tokenizer: Any) -> dict[str, str]:
    """Returns the vocabulary files that have other ids than the one that is used, and how."""
    used = tokenizer.vocab_files_names.get("vocab_file", "")
    if tokenizer.is_fast and (directory / FILES[0]).is_file():
        used = FILES[0]
    found = {}
    for name in VOCABULARIES:
        if name == used or not (directory / name).is_file():
            continue
        try:
            example = _first_difference(ids_in(directory / name)[0], tokenizer)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found[name] = f"cannot be read ({first_line(error)}); {used} is used"
            continue
        if example:
            token, there, here = example
            found[name] = (
                f"does not agree with {used}, which is used: {token!r} has the id {there} in the "
                f"former, {here} in the latter"
            )
    return found


def _first_difference(theirs: dict[str, int], tokenizer: Any) -> tuple[str, Any, Any] | None:
    """Returns a token and its two ids, or "none" where it is missing."""
    # Line ends and trailing white space are no part of a token in vocab.txt.
    theirs = {token.rstrip(): number for token, number in theirs.items()}
    ours = {token.rstrip(): number for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_vocab()
    odd = [token for token, number in theirs.items() if token and ours.get(token) != number]
    odd += [token for token in ours if token and token not in theirs and token not in added]
    if not odd:
        return None
    token = min(odd, key=lambda token: (theirs.get(token, ours.get(token)), token))
    return token, theirs.get(token, "none"), ours.get(token, "none")


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


def _refuse_missing_files(directory: Path, files: Container[str], name: str, kind: Any) -> None:
    """Raises ModelFileError if the folder lacks what a class reads.

    Without it transformers silently makes a tokenizer of a few special tokens.
    """
    import transformers

    if FILES[0] in files and issubclass(kind, transformers.PreTrainedTokenizerFast):
        return
    if kind is transformers.PreTrainedTokenizerFast:
        why = "it is not transformers' own but a program, which is not run"
        if name in ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"):
            why = "it reads a tokenizer.json, which is missing"
        raise ModelFileError(
            f"{directory}: the tokenizer class {name} cannot be used: {why}. Save a "
            "tokenizer.json from it where it runs, and put that beside the model."
        )
    read = [kind.vocab_files_names.get(key) for key in ("vocab_file", "merges_file")]
    missing = [file for file in read if file and file not in files]
    if missing:
        found = ", ".join(file for file in FILES if file in files)
        advice = (
            "Copy the tokenizer files of the checkpoint there, or name the class that wrote these "
            'by "tokenizer_class" in tokenizer_config.json.'
        )
        raise ModelFileError(
            f"{directory}: the tokenizer class {name} reads {' and '.join(missing)}, which is "
            f"missing; the folder has {found}. {_converted(directory, advice)}"
        )


def _converted(directory: Path, otherwise: str) -> str:
    """Returns the advice to convert a SentencePiece model if the folder has one."""
    models = sorted(path.name for path in directory.glob("*.model"))
    if not models:
        return otherwise
    return (
        f"{models[0]} is a SentencePiece model, which is not read. Where the packages "
        "sentencepiece and protobuf are installed, write a tokenizer.json from it: python -c "
        f"\"from transformers import AutoTokenizer as A; A.from_pretrained('{directory}')"
        f".save_pretrained('{directory}')\""
    )


def _visible(directory: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns the files to show to transformers, and the settings in them; `tokenizer_class` is
    always among these."""
    contents: dict[str, bytes] = {}
    merged: dict[str, Any] = {}
    try:
        for path in files_in(directory):
            data = path.read_bytes()
            if path.name in (_SETTINGS, _SPECIAL):
                settings = _plain_settings(path, json.loads(data))
                merged = settings | {name: value for name, value in merged.items() if value}
                data = json.dumps(settings).encode()
            contents[path.name] = data
        name = merged.get("tokenizer_class")
        if not name and (directory / "config.json").is_file():
            name = read_json(directory / "config.json").get("tokenizer_class")
    except ModelFileError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(directory, error) from error
    return contents, merged | {"tokenizer_class": str(name or "BertTokenizer")}


def _plain_settings(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings without those that could name a file or a program.

    Raises ModelFileError for options of another program, without which tokens would differ.
    """
    plain = {}
    for name, value in settings.items():
        simple = isinstance(value, bool | int | float | None)
        if simple or name.endswith(_ENDINGS) or name in _LISTS:
            plain[name] = value
        elif name.endswith("_kwargs") and isinstance(value, dict):
            splits_words = name in ("mecab_kwargs", "sudachi_kwargs", "jumanpp_kwargs")
            known = {
                option: given
                for option, given in value.items()
                if isinstance(given, bool | None) or given in _WORD_OPTIONS.get(option, ())
            }
            passed = known if splits_words else {}
            if refused := [option for option in value if value[option] and option not in passed]:
                raise ModelFileError(
                    f"{path}: {name} has {', '.join(refused)}: options for another program, which "
                    "are not passed on. Choose a model without them."
                )
            if splits_words:
                plain[name] = known
    return plain


def _unusable(directory: Path, settings: Mapping[str, Any], error: BaseException) -> ModelFileError:
    """Returns an error for whatever transformers raised as it loaded a tokenizer."""
    name = settings["tokenizer_class"]
    words = str(settings.get("word_tokenizer_type"))
    if not isinstance(error, ImportError) and words not in ("mecab", "sudachi", "jumanpp"):
        return _unreadable(directory, error)
    options = settings.get("mecab_kwargs")
    dictionary = (options.get("mecab_dic") if isinstance(options, dict) else "") or "unidic_lite"
    packages = {
        "mecab": f"fugashi {dictionary.replace('_', '-')}",
        "sudachi": "sudachipy sudachidict_core",
        "jumanpp": "rhoknp",
    }.get(words, "sentencepiece protobuf")
    return ModelFileError(
        f"{directory}: the tokenizer class {name} cannot be used: {first_line(error)}. "
        f"It needs packages: pip install {packages}"
    )


def _unreadable(directory: Path, error: BaseException) -> ModelFileError:
    """Returns one readable line for whatever a parser raised."""
    return ModelFileError(
        f"{directory}: the tokenizer files cannot be read: {type(error).__name__}: "
        f"{first_line(error)}. Copy those of the checkpoint again."
    )
