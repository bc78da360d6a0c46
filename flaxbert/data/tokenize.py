"""Texts -> token ids, once, with the checkpoint's own tokenizer files.

The surprising thing: limits that stand in tokenizer.json (all-MiniLM-L6-v2 cuts and pads to 128)
are ignored; `max_length` of the run decides. Words are made by normalize.py, not by the normalizer
of the file, which differs from BERT's own. And transformers gives a folder without a vocabulary a
silent 5-token tokenizer, so the files are looked at first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flaxbert.data.normalize import Normalizer
from flaxbert.errors import ConfigError, ModelFileError

# What makes up a tokenizer; copied into the workdir and the exported folder as they are.
FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

_CHUNK = 4096  # texts per call of the tokenizer: bounds its memory


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many sequences, end to end: sequence i is [offsets[i], offsets[i + 1])."""

    input_ids: Int[np.ndarray, " T"]
    token_type_ids: Int[np.ndarray, " T"]
    offsets: Int[np.ndarray, " bounds"]  # one more than there are sequences
    truncated: int  # sequences that were longer than max_length
    unknown_share: float  # of all tokens but the special ones

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        return np.diff(self.offsets)

    def digest(self) -> str:
        """SHA-256 over ids, types and boundaries: the same data give the same digest."""
        sha = hashlib.sha256()
        for array in (self.input_ids, self.token_type_ids, self.offsets):
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


class Tokenizer:
    """The tokenizer of a checkpoint folder, checked against the model's vocabulary."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        vocab_size: int,
        pad_token_id: int | None,
        type_vocab_size: int = 2,
    ) -> None:
        """Reads tokenizer.json or vocab.txt.

        Raises:
          ModelFileError: no vocabulary, more tokens than the model has embeddings, no [UNK],
            [CLS] or [SEP], or another padding id than config.json says.
        """
        self.directory = Path(directory)
        self._types = type_vocab_size
        if not any((self.directory / name).is_file() for name in FILES[:2]):
            raise ModelFileError(
                f"{self.directory}: has neither tokenizer.json nor vocab.txt. Copy the tokenizer "
                "files of the checkpoint there."
            )
        self._tokenizer = _load(self.directory)
        size = len(self._tokenizer)
        if size > vocab_size:
            raise ModelFileError(
                f"{self.directory}: the tokenizer has {size} tokens, the model {vocab_size} "
                "embeddings. The files belong to different models."
            )
        for name in ("cls_token_id", "sep_token_id", "unk_token_id"):
            if getattr(self._tokenizer, name) is None:
                raise ModelFileError(f"{self.directory}: the tokenizer has no {name[:3]} token.")
        pad = self._tokenizer.pad_token_id
        if pad is not None and pad_token_id is not None and pad != pad_token_id:
            raise ModelFileError(
                f"{self.directory}: the tokenizer pads with id {pad}, config.json says "
                f"pad_token_id {pad_token_id}."
            )
        self._normalize = _take_over(self._tokenizer)

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, *, max_length: int
    ) -> Tokens:
        """Encodes sentences or pairs; longer ones lose tokens from the end of the longer part."""
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        truncated = 0
        for start in range(0, len(texts), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            fields = self._encode(texts[chunk], None if pairs is None else pairs[chunk])
            for row_ids, row_types, special in zip(*fields, strict=True):
                row_ids, row_types = np.asarray(row_ids, np.int32), np.asarray(row_types, np.int32)
                if len(row_ids) > max_length:
                    keep = _longest_first(np.asarray(special) == 1, max_length)
                    row_ids, row_types = row_ids[keep], row_types[keep]
                    truncated += 1
                ids.append(row_ids)
                types.append(row_types)
        if max((int(row.max()) for row in types if len(row)), default=0) >= self._types:
            raise ConfigError(
                f"{self.directory}: the model has type_vocab_size {self._types} and cannot tell "
                "the two texts of a pair apart. Join them in one column, or use another model."
            )
        flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        special = np.asarray(self._tokenizer.all_special_ids)
        unknown = int(np.sum(flat == self._tokenizer.unk_token_id))
        ordinary = int(np.sum(~np.isin(flat, special))) + unknown
        return Tokens(
            flat,
            np.concatenate(types) if types else np.zeros(0, np.int32),
            np.cumsum([0, *map(len, ids)]),
            truncated,
            unknown / ordinary if ordinary else 0.0,
        )

    def _encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[list[list[int]]]:
        """Returns whole sequences: their ids, their types, and 1 where the template put a token."""
        encoded = self._tokenizer(
            list(map(self._normalize, texts)),
            None if pairs is None else list(map(self._normalize, pairs)),
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        return [encoded[name] for name in ("input_ids", "token_type_ids", "special_tokens_mask")]


def _take_over(tokenizer: Any) -> Callable[[str], str]:
    """Returns what makes a text ready, and leaves the backend to split at spaces.

    A tokenizer that is not BERT's (another normalizer or pre-tokenizer in tokenizer.json) keeps its
    own way.
    """
    from tokenizers.normalizers import Sequence as NoNormalizer
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    options, split = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    ours = options.get("type") == "BertNormalizer" and options["clean_text"]
    if not ours or split.get("type") != "BertPreTokenizer":
        return str
    backend.normalizer = NoNormalizer([])
    backend.pre_tokenizer = WhitespaceSplit()
    lowercase, strip = options["lowercase"], options["strip_accents"]
    return Normalizer(
        lowercase=lowercase,
        strip_accents=lowercase if strip is None else strip,
        split_ideographs=options["handle_chinese_chars"],
        special_tokens=[token["content"] for token in state["added_tokens"]],
    )


def _longest_first(special: Bool[np.ndarray, " n"], max_length: int) -> Bool[np.ndarray, " n"]:
    """Returns which tokens stay, as truncation="longest_first" of transformers chooses them.

    Not left to transformers: it also builds every combination of the pieces cut off, so that a pair
    of two texts of 30,000 words takes more than 12 GB.
    """
    inside = np.flatnonzero(~special)
    gap = np.flatnonzero(np.diff(inside) > 1)  # the separator between two texts
    first = int(gap[0]) + 1 if len(gap) else len(inside)
    second = len(inside) - first
    room = max_length - int(special.sum())
    short, long = min(first, second), max(first, second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    kept_first, kept_second = (long, short) if first > second else (short, long)
    keep = special.copy()
    keep[inside[:kept_first]] = True
    keep[inside[first : first + kept_second]] = True
    return keep


def files_in(directory: Path) -> list[Path]:
    """Returns the tokenizer files that a model folder has."""
    return [directory / name for name in FILES if (directory / name).is_file()]


def resolve_max_length(asked: int, model_maximum: int) -> int:
    """Returns the tokens a sequence may have; 0 asks for the model's maximum.

    Raises:
      ConfigError: more than the model has positions, or too few for [CLS] x [SEP] y [SEP].
    """
    if asked > model_maximum:
        raise ConfigError(
            f"config.data.max_length={asked}: the model has {model_maximum} positions. "
            f"Set it to at most {model_maximum} (0 = the maximum)."
        )
    length = asked or model_maximum
    if length < 5:
        raise ConfigError(f"config.data.max_length={asked}: expected at least 5 tokens.")
    return length


def _load(directory: Path) -> Any:
    # Imported here: transformers takes seconds, and evaluation of token rows does not need it.
    from transformers import AutoTokenizer, BertTokenizer
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # advice about classes that are not used here
    try:
        # AutoTokenizer reads config.json to learn the class; a bare vocabulary has none.
        bare = not (directory / "config.json").is_file()
        cls = BertTokenizer if bare and not (directory / FILES[0]).is_file() else AutoTokenizer
        return cls.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the loader raises whatever its parsers do
        raise ModelFileError(f"{directory}: the tokenizer files cannot be read: {error}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
