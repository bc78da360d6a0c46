"""Texts -> token ids, once, with the tokenizer that will serve: transformers' own.

Note: for a folder without a vocabulary transformers silently makes a tokenizer of 5 tokens, and it
adds special tokens that the files lack; so the files are checked first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from flaxbert.data.cells import is_encodable
from flaxbert.data.long import Cut, cut_end
from flaxbert.data.token_types import set_type_zero
from flaxbert.data.tokenizer_files import (
    exported_files,
    load_tokenizer,
    read_vocabulary,
    refuse_unusable,
)
from flaxbert.data.tokenizer_warnings import (
    class_hint,
    export_warnings,
    pair_warnings,
    warnings_about,
)
from flaxbert.errors import ConfigError, ModelFileError, first_line

_CHUNK = 4096  # texts per call of the tokenizer: bounds its memory
_HASHED = 2**20  # tokens that are converted at once


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many sequences, end to end: sequence i is [offsets[i], offsets[i + 1]).

    Ids and types have the smallest unsigned dtypes that hold the model's.
    """

    input_ids: Integer[np.ndarray, " T"]
    token_type_ids: Integer[np.ndarray, " T"]
    offsets: Int[np.ndarray, " bounds"]  # one more than there are sequences
    truncated: int  # texts that were longer than max_length
    unknown_share: float  # of all tokens but the special ones, which `ordinary` counts
    uncut_lengths: Int[np.ndarray, " texts"] | None = None  # of each text; None: nothing was cut
    owners: Int[np.ndarray, " sequences"] | None = None  # the text of each window; None: one each
    ordinary: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        return np.diff(self.offsets)

    def lengths_of(self, sequences: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Returns `lengths[sequences]` without computing all lengths."""
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
        """Reads the tokenizer files of a folder.

        `warnings` has lines about suspicious files, `pair_warnings` about the token types of pairs,
        `export_warnings` about what is exported.

        Raises ModelFileError if there is no vocabulary, it has more tokens than the model has
        embeddings, or no [UNK], [CLS] or [SEP].
        """
        self.directory = Path(directory)
        self._types = type_vocab_size
        self.id_dtype = np.min_scalar_type(vocab_size - 1)  # 16 bits for BERT's vocabularies
        self._kind_type = np.min_scalar_type(type_vocab_size - 1)
        refuse_unusable(self.directory)
        written, parts = read_vocabulary(self.directory)
        self._tokenizer = load_tokenizer(self.directory)
        for name in ("cls", "sep", "unk"):
            token = getattr(self._tokenizer, f"{name}_token")
            # transformers adds a token that the files lack, with an id that was never trained.
            if not token or token not in written:
                raise ModelFileError(
                    f"{self.directory}: the tokenizer has no {name} token. Copy all tokenizer "
                    "files of the checkpoint there." + class_hint(self._tokenizer, parts)
                )
            # Not before that check: transformers looks for an empty token's id without end.
            number = self._tokenizer.convert_tokens_to_ids(token)
            if number != written[token]:
                raise ModelFileError(
                    f"{self.directory}: transformers gives {token!r} the id {number}, the files "
                    f"{written[token]}. Copy all tokenizer files of the checkpoint there."
                    + class_hint(self._tokenizer, parts)
                )
        vocabulary = self._tokenizer.get_vocab()
        # The number of tokens is not enough: a duplicate line leaves a gap below the last id.
        size = max(len(self._tokenizer), 1 + max(vocabulary.values(), default=0))
        if size > vocab_size:
            raise ModelFileError(
                f"{self.directory}: the tokenizer has {size} tokens, the model {vocab_size} "
                "embeddings. The files belong to different models."
            )
        self.cls_token_id: int = self._tokenizer.cls_token_id
        self.sep_token_id: int = self._tokenizer.sep_token_id
        self.unk_token_id: int = self._tokenizer.unk_token_id
        self.warnings = warnings_about(self.directory, self._tokenizer, parts, pad_token_id)
        self.pair_warnings = pair_warnings(self.directory, self._tokenizer)
        self.export_warnings = export_warnings(self._tokenizer)
        # As transformers feeds them: some of its classes give no token types to a model.
        self._typed = "token_type_ids" in self._tokenizer.model_input_names
        if not self._typed and self._tokenizer.is_fast:
            set_type_zero(self._tokenizer.backend_tokenizer)
        template = self._encode([""], None)[0][0]
        if template != [self.cls_token_id, self.sep_token_id]:
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
        """Encodes sentences or pairs; `cut` shortens those over `max_length`."""
        kept_ids, kept_types = bytearray(), bytearray()  # grow in place and become the arrays
        lengths, whole, owners = array("i"), array("i"), array("q")
        truncated = unknown = ordinary = 0
        special_ids = np.asarray(self._tokenizer.all_special_ids)
        for start in range(0, len(texts), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            rows = self._encode(texts[chunk], None if pairs is None else pairs[chunk])
            ids: list[np.ndarray] = []
            types: list[np.ndarray] = []
            for text, (row_ids, row_types, special) in enumerate(rows, start):
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
            unknown += int(np.sum(flat == self.unk_token_id))
            ordinary += int(np.sum(~np.isin(flat, special_ids)))
            kept_ids += flat.astype(self.id_dtype).tobytes()
            kept_types += kinds.astype(self._kind_type).tobytes()
        ordinary += unknown
        return Tokens(
            np.frombuffer(kept_ids, self.id_dtype),
            np.frombuffer(kept_types, self._kind_type),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            truncated,
            unknown / ordinary if ordinary else 0.0,
            uncut_lengths=np.array(whole, np.int32) if truncated else None,
            owners=np.array(owners) if len(owners) > len(texts) else None,
            ordinary=ordinary,
        )

    def encode_with_offsets(
        self, texts: Sequence[str]
    ) -> list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]]:
        """Returns (ids, offsets) of each text, without special tokens.

        Piece i was made of `text[offsets[i, 0]:offsets[i, 1]]`, the text as it was given: offsets
        count Unicode code points, as Python's strings do. Accents that the tokenizer drops, white
        space and control characters may lie in no piece.

        Raises:
          ModelFileError: a tokenizer of transformers that is written in Python has no offsets.
        """
        if not self._tokenizer.is_fast:
            raise ModelFileError(
                f"{self.directory}: {type(self._tokenizer).__name__} does not tell where in a text "
                "its tokens are. Choose a model that has a tokenizer.json."
            )
        encode = self._tokenizer.backend_tokenizer.encode_batch
        rows = _encoded(encode, list(texts), add_special_tokens=False)
        return [(_array(row.ids), _array(row.offsets).reshape(-1, 2)) for row in rows]

    def encode_words(
        self, sentences: Sequence[Sequence[str]]
    ) -> list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
        """Returns (ids, words) of each sentence that is split into words, without special tokens.

        `words[i]` is the index of the word that piece i belongs to. The ids are those of
        `is_split_into_words=True`; a word without any piece (such as "", or a lone variation
        selector) becomes the unknown token, so that each word has a piece.
        """
        if self._tokenizer.is_fast:
            encode = self._tokenizer.backend_tokenizer.encode_batch
            inputs = list(map(list, sentences))
            rows = _encoded(encode, inputs, is_pretokenized=True, add_special_tokens=False)
            split = ((row.ids, row.word_ids) for row in rows)
        else:
            split = map(self._split_in_python, sentences)
        found = []
        for sentence, (ids, words) in zip(sentences, split, strict=True):
            ids, words = _array(ids), _array(words)
            lacking = np.setdiff1d(np.arange(len(sentence), dtype=np.int32), words)
            places = np.searchsorted(words, lacking)
            ids = np.insert(ids, places, self.unk_token_id)
            found.append((ids, np.insert(words, places, lacking)))
        return found

    def _split_in_python(self, sentence: Sequence[str]) -> tuple[list[int], np.ndarray]:
        pieces = [self._tokenizer.tokenize(word) for word in sentence]
        ids = self._tokenizer.convert_tokens_to_ids(list(itertools.chain(*pieces)))
        return ids, np.repeat(np.arange(len(pieces)), list(map(len, pieces)))

    def told(self, *, pairs: bool) -> tuple[str, ...]:
        """Returns the lines that a user should see: `warnings`, and for pairs of texts theirs."""
        return self.warnings + (self.pair_warnings if pairs else ())

    def exported(self, max_length: int) -> dict[str, bytes]:
        """Returns the tokenizer files of a model trained with texts of at most `max_length`."""
        return exported_files(self._tokenizer, self.directory, max_length)

    def _encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None
    ) -> list[tuple[list[int], list[int], list[int]]]:
        """Returns ids, types and special-token mask (1 = from the template) of each sequence."""
        if self._tokenizer.is_fast:
            encode = self._tokenizer.backend_tokenizer.encode_batch_fast  # without offsets
            inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
            rows = _encoded(encode, inputs)
            return [(row.ids, row.type_ids, row.special_tokens_mask) for row in rows]
        encoded = self._tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            return_token_type_ids=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        types = types if self._typed else [[0] * len(row) for row in ids]
        return list(zip(ids, types, encoded["special_tokens_mask"], strict=True))


def resolve_max_length(asked: int, model_maximum: int) -> int:
    """Returns the tokens a sequence may have; `asked` = 0 means the model's maximum.

    Raises ConfigError for more than the model has positions, or too few for [CLS] x [SEP] y [SEP].
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


def _encoded(encode: Callable[..., Any], inputs: list[Any], **options: Any) -> Iterator[Any]:
    """Yields the backend's encodings, which are large, in chunks.

    Raises ValueError for a text that UTF-8 cannot encode, ModelFileError for an unknown token that
    the vocabulary lacks.
    """
    try:
        for start in range(0, len(inputs), _CHUNK):
            yield from encode(inputs[start : start + _CHUNK], **options)
    except TypeError as error:
        texts = [text for row in inputs for text in ([row] if isinstance(row, str) else row)]
        broken = next((text for text in texts if not is_encodable(text)), None)
        if broken is None:
            raise
        raise ValueError(f"half of a surrogate pair in the text {broken!a:.80}") from error
    except Exception as error:
        if type(error) is not Exception:  # as the tokenizers library raises
            raise
        raise ModelFileError(
            f"the tokenizer cannot split a text: {first_line(error)}. Copy the tokenizer files of "
            "the checkpoint again."
        ) from error


def _array(values: Any) -> Int[np.ndarray, " ..."]:
    return np.asarray(values, np.int32)
