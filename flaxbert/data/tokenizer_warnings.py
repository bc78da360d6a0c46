"""Warnings about a tokenizer's files: what in them is not used, or does not fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxbert.data.tokenizer_files import disagreements


def warnings_about(
    directory: Path, tokenizer: Any, parts: Mapping[str, Any], pad_token_id: int | None
) -> tuple[str, ...]:
    """Returns lines about suspicious files; `parts` are those of tokenizer.json, `pad_token_id` is
    config.json's."""
    settings = directory / "tokenizer_config.json"
    lines = [
        *_casing(settings, tokenizer),
        *_parts(settings, tokenizer, parts),
        *_ignored(settings, tokenizer),
        *(f"{directory / name} {how}" for name, how in disagreements(directory, tokenizer).items()),
        *_added(directory, tokenizer),
        *_padding(tokenizer, pad_token_id),
    ]
    return tuple(f"tokenizer: WARNING: {line}" for line in lines)


def export_warnings(tokenizer: Any) -> tuple[str, ...]:
    """Returns a line if the exported folder cannot have a tokenizer.json."""
    if tokenizer.is_fast:
        return ()
    return (
        f"tokenizer: WARNING: {type(tokenizer).__name__} is written in Python, so model/ has no "
        "tokenizer.json: programs that read nothing else cannot serve it. flaxbert, and "
        "transformers' AutoTokenizer and pipeline, can, with the same packages installed",
    )


def pair_warnings(directory: Path, tokenizer: Any) -> tuple[str, ...]:
    """Returns a line if transformers does not pass on the token types of a pair."""
    (types,) = tokenizer([""], [""], return_token_type_ids=True)["token_type_ids"]
    if "token_type_ids" in tokenizer.model_input_names or not any(types):
        return ()
    return (
        "tokenizer: WARNING: both texts of a pair get token type 0, as transformers 5 does with "
        f"{type(tokenizer).__name__}; for types 0 and 1 set "
        '"model_input_names": ["input_ids", "token_type_ids", "attention_mask"] in '
        f"{directory / 'tokenizer_config.json'}",
    )


def _casing(settings: Path, tokenizer: Any) -> list[str]:
    """Warns of a cased vocabulary with a tokenizer that lower-cases, or the reverse: transformers
    lower-cases unless the files say otherwise, also for cased models."""
    if tokenizer.is_fast and type(tokenizer.backend_tokenizer.model).__name__ != "WordPiece":
        return []  # pieces of words, which do not tell
    words = [
        word for token in tokenizer.get_vocab() if (word := token.removeprefix("##"))[:1].isalpha()
    ]
    capitals = sum(word != word.lower() for word in words)
    lowers = _lowers(tokenizer)
    advice = f'set "do_lower_case": {json.dumps(not lowers)} in {settings}'
    if not hasattr(tokenizer, "do_lower_case"):
        advice = f"change the normalizer in {settings.parent / 'tokenizer.json'}"
    if lowers and capitals > 0.01 * len(words):
        return [
            f"{capitals} of {len(words)} words of the vocabulary have capital letters, but texts "
            f"are lower-cased. For a cased model {advice}"
        ]
    if not lowers and not capitals and any(word.isascii() for word in words):
        return [
            "no word of the vocabulary has a capital letter, but texts keep theirs and become "
            f"unknown. For an uncased model {advice}"
        ]
    return []


def _lowers(tokenizer: Any) -> bool:
    """Whether texts are lower-cased."""
    if not tokenizer.is_fast:
        return bool(getattr(tokenizer, "do_lower_case", False))
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _parts(settings: Path, tokenizer: Any, parts: Mapping[str, Any]) -> list[str]:
    """Warns of a tokenizer.json that splits texts differently from the class of transformers that
    is used: servers that read the file itself use the file's rules."""
    if not (tokenizer.is_fast and parts):
        return []
    import tokenizers

    # Parsed by the library, since one part can be written in several ways.
    unread = {"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}, "added_tokens": []}
    unread |= dict.fromkeys(("post_processor", "decoder", "truncation", "padding"))
    file = tokenizers.Tokenizer.from_str(json.dumps(dict(parts) | unread))
    used = tokenizer.backend_tokenizer
    other = [
        name
        for name in ("normalizer", "pre_tokenizer")
        if _state(getattr(file, name)) != _state(getattr(used, name))
    ]
    stated = parts["model"]
    if kinds := _kinds(tokenizer, parts):
        other, stated = [f"model ({kinds[0]}, not {kinds[1]})"], {}
    for name in stated.keys() - {"type", "vocab", "merges"}:
        values = [stated[name], getattr(used.model, name, stated[name])]
        if values[0] != values[1] and not all(value in ("", None) for value in values):
            other.append(f"{name} of the model")
    if not other:
        return []
    return [
        f"tokenizer.json has another {' and '.join(sorted(other))} than transformers uses for "
        f"{type(tokenizer).__name__}. The latter is used, and exported; to use the file as it is, "
        f'set "tokenizer_class": "PreTrainedTokenizerFast" in {settings}'
    ]


def class_hint(tokenizer: Any, parts: Mapping[str, Any]) -> str:
    """Returns advice if tokenizer.json is of another kind than the class that reads it."""
    if not (kinds := _kinds(tokenizer, parts)):
        return ""
    return (
        f" tokenizer.json is {kinds[0]}, {type(tokenizer).__name__} is {kinds[1]}: name its class "
        'by "tokenizer_class" in tokenizer_config.json.'
    )


def _kinds(tokenizer: Any, parts: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns the kind of tokenizer.json's model and the kind that is used, if they differ."""
    if not (tokenizer.is_fast and parts):
        return None
    used = type(tokenizer.backend_tokenizer.model).__name__
    stated = parts["model"].get("type", used)
    return None if stated == used else (stated, used)


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _ignored(settings: Path, tokenizer: Any) -> list[str]:
    """Warns of settings that transformers' fast tokenizers do not follow."""
    if not tokenizer.is_fast:
        return []
    followed = {"never_split": None, "do_basic_tokenize": True, "do_lower_case": _lowers(tokenizer)}
    normalizer = tokenizer.backend_tokenizer.normalizer
    if type(normalizer).__name__ == "BertNormalizer":
        followed["strip_accents"] = normalizer.strip_accents
        followed["tokenize_chinese_chars"] = normalizer.handle_chinese_chars
    given = {name: tokenizer.init_kwargs.get(name) for name in followed}
    ignored = [name for name, value in given.items() if value not in (None, [], followed[name])]
    if not ignored:
        return []
    advice = ""
    if "never_split" in ignored:
        advice = "; to keep words whole, name them and their ids in added_tokens.json"
    return [
        f"{', '.join(ignored)} in {settings} has no effect with {type(tokenizer).__name__}, as in "
        f"transformers 5{advice}"
    ]


def _added(directory: Path, tokenizer: Any) -> list[str]:
    """Warns of added words that transformers numbers in its own way, after the vocabulary."""
    for number, token in sorted(tokenizer.init_kwargs.get("added_tokens_decoder", {}).items()):
        used = tokenizer.convert_tokens_to_ids(str(token))
        if used != number:
            return [
                f"the files in {directory} give the added token {str(token)!r} the id {number}, "
                f"transformers gives it {used}, which is used"
            ]
    return []


def _padding(tokenizer: Any, pad_token_id: int | None) -> list[str]:
    pad = tokenizer.pad_token_id
    if None in (pad, pad_token_id) or pad == pad_token_id:
        return []
    token = tokenizer.convert_ids_to_tokens(pad_token_id)
    return [
        f"the tokenizer pads with {tokenizer.pad_token!r} (id {pad}), config.json says "
        f"pad_token_id {pad_token_id}, which is {token!r}: as in PyTorch, the embedding of the "
        "latter is not trained"
    ]
