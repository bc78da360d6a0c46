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
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from flaxbert.data.long import Cut, cut_end
from flaxbert.data.normalize import Normalizer
from flaxbert.data.tokenizer_files import (
    plain_copy,
    refuse_unusable,
    unreadable,
    written_tokens,
)
from flaxbert.errors import ConfigError, ModelFileError

_CHUNK = 4096  # texts per call of the tokenizer: bounds its memory
_HASHED = 2**20  # tokens that are widened at once


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many sequences, end to end: sequence i is [offsets[i], offsets[i + 1]).

    Ids and types have the smallest unsigned dtypes for the model's numbers of them.
    """

    input_ids: Integer[np.ndarray, " T"]
    token_type_ids: Integer[np.ndarray, " T"]
    offsets: Int[np.ndarray, " bounds"]  # one more than there are sequences
    truncated: int  # texts that were longer than max_length
    unknown_share: float  # of all tokens but the special ones
    uncut_lengths: Int[np.ndarray, " texts"] | None = None  # of each text; None: nothing was cut
    owners: Int[np.ndarray, " sequences"] | None = None  # the text of each window; None: one each

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        return np.diff(self.offsets)

    def lengths_of(self, sequences: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Returns what `lengths[sequences]` is, without computing all of them."""
        return self.offsets[1:][sequences] - self.offsets[:-1][sequences]

    def digest(self) -> str:
        """SHA-256 over ids and types (as 32 bits, little-endian) and boundaries (64)."""
        sha = hashlib.sha256()
        for values in (self.input_ids, self.token_type_ids):
            for start in range(0, len(values), _HASHED):
                sha.update(values[start : start + _HASHED].astype(np.int32).tobytes())
        sha.update(self.offsets.tobytes())
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
        """Reads tokenizer.json or vocab.txt; `warnings` tells what is odd but may be meant.

        Raises:
          ModelFileError: no vocabulary, more tokens than the model has embeddings, no [UNK],
            [CLS] or [SEP], or another padding id than config.json says.
        """
        self.directory = Path(directory)
        self._types = type_vocab_size
        self._id_type = np.min_scalar_type(vocab_size - 1)  # 16 bits for BERT's vocabularies
        self._kind_type = np.min_scalar_type(type_vocab_size - 1)
        refuse_unusable(self.directory)
        written = written_tokens(self.directory)
        self._tokenizer = _load(self.directory)
        vocabulary = self._tokenizer.get_vocab()
        # Not the number of tokens alone: a line that stands twice leaves a hole below the last id.
        size = max(len(self._tokenizer), 1 + max(vocabulary.values(), default=0))
        if size > vocab_size:
            raise ModelFileError(
                f"{self.directory}: the tokenizer has {size} tokens, the model {vocab_size} "
                "embeddings. The files belong to different models."
            )
        for name in ("cls", "sep", "unk"):
            token = getattr(self._tokenizer, f"{name}_token")
            # transformers invents a token that the files lack, with an id nothing was trained for.
            if token is None or token not in written:
                raise ModelFileError(
                    f"{self.directory}: the tokenizer has no {name} token. Copy all tokenizer "
                    "files of the checkpoint there."
                )
        pad = self._tokenizer.pad_token_id
        if pad is not None and pad_token_id is not None and pad != pad_token_id:
            raise ModelFileError(
                f"{self.directory}: the tokenizer pads with id {pad}, config.json says "
                f"pad_token_id {pad_token_id}."
            )
        self.warnings = _casing_warnings(self.directory, self._tokenizer, vocabulary)
        self._normalize = _take_over(self._tokenizer)
        template = self._encode([""], None)[0][0]
        if template != [self._tokenizer.cls_token_id, self._tokenizer.sep_token_id]:
            raise ModelFileError(
                f"{self.directory}: the tokenizer gives an empty text the ids {template[:8]}, not "
                "[CLS] and [SEP]. It is not a BERT tokenizer; copy that of the checkpoint."
            )

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        *,
        max_length: int,
        cut: Cut = cut_end,
    ) -> Tokens:
        """Encodes sentences or pairs; of one over `max_length`, `cut` says what stays of it."""
        kept_ids, kept_types = bytearray(), bytearray()  # they grow in place, and are the arrays
        lengths, whole, owners = array("i"), array("i"), array("q")
        truncated = unknown = ordinary = 0
        special_ids = np.asarray(self._tokenizer.all_special_ids)
        for start in range(0, len(texts), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            fields = self._encode(texts[chunk], None if pairs is None else pairs[chunk])
            ids: list[np.ndarray] = []
            types: list[np.ndarray] = []
            for text, (row_ids, row_types, special) in enumerate(zip(*fields, strict=True), start):
                row_ids, row_types = np.asarray(row_ids, np.int32), np.asarray(row_types, np.int32)
                whole.append(len(row_ids))
                kept = [np.s_[:]]
                if len(row_ids) > max_length:
                    kept = cut(np.asarray(special) == 1, max_length)
                    truncated += 1
                ids += [row_ids[part] for part in kept]
                types += [row_types[part] for part in kept]
                owners.extend([text] * len(kept))
            lengths.extend(map(len, ids))
            flat, kinds = np.concatenate(ids), np.concatenate(types)
            if kinds.max(initial=0) >= self._types:
                raise ConfigError(
                    f"{self.directory}: the model has type_vocab_size {self._types} and cannot "
                    "tell the two texts of a pair apart. Join them in one column, or use another "
                    "model."
                )
            unknown += int(np.sum(flat == self._tokenizer.unk_token_id))
            ordinary += int(np.sum(~np.isin(flat, special_ids)))
            kept_ids += flat.astype(self._id_type).tobytes()
            kept_types += kinds.astype(self._kind_type).tobytes()
        ordinary += unknown
        return Tokens(
            np.frombuffer(kept_ids, self._id_type),
            np.frombuffer(kept_types, self._kind_type),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            truncated,
            unknown / ordinary if ordinary else 0.0,
            uncut_lengths=np.array(whole, np.int32) if truncated else None,
            owners=np.array(owners) if len(owners) > len(texts) else None,
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


def _casing_warnings(directory: Path, tokenizer: Any, vocabulary: Iterable[str]) -> tuple[str, ...]:
    """Tells of a cased vocabulary under a tokenizer that lower-cases, or the reverse: transformers
    lower-cases unless the files say otherwise, also for cased models."""
    words = [word for token in vocabulary if (word := token.removeprefix("##"))[:1].isalpha()]
    capitals = sum(word != word.lower() for word in words)
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


def _load(directory: Path) -> Any:
    # Imported here: transformers takes seconds, and evaluation of token rows does not need it.
    from transformers import AutoTokenizer, BertTokenizer
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # advice about classes that are not used here
    try:
        with plain_copy(directory) as copy:
            # AutoTokenizer reads config.json to learn the class; a bare vocabulary has none.
            bare = not any((copy / name).is_file() for name in ("config.json", "tokenizer.json"))
            cls = BertTokenizer if bare else AutoTokenizer
            return cls.from_pretrained(str(copy), local_files_only=True, trust_remote_code=False)
    except ModelFileError:
        raise
    except BaseException as error:
        # The loader raises whatever its parsers do; a Rust one that panics, no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise unreadable(directory, error) from error
        raise
    finally:
        hf_logging.set_verbosity(verbosity)
