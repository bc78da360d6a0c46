"""Token ids of random Unicode strings: what serves an exported model reads what training read.

    python -m tests.soak.tokens --count=100000 --output=tests/results/tokens.json

Each string is encoded by the training path, by flaxbert.Classifier, by transformers' AutoTokenizer,
by the tokenizers library from tokenizer.json alone and by what transformers' pipeline feeds its
model (where PyTorch is installed): the latter four from the exported folder. Strings over
max_length are cut, by each in its own way. A tokenizer written in Python has no tokenizer.json.

All strings are read with the plain uncased tokenizer, a fifth of them with each other kind.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.data.tokenizer_folders import write_bpe, write_byte_level, write_settings, write_unigram
from tests.data.unicode_texts import SCRIPTS, SPECIAL, texts, write_every_character
from tests.soak.record import machine, scratch, versions

MAX_LENGTH = 128
PLAIN = "uncased"


def _embedded(folder: Path) -> None:
    """vocab.txt and a tokenizer.json that has limits of its own: all-MiniLM-L6-v2's."""
    from flaxbert.data.tokenizer_files import files_in
    from flaxbert.storage.embedded import minilm_directory

    for path in files_in(minilm_directory()):
        shutil.copy(path, folder)


def _characters(
    settings: dict[str, Any] | None = None, added: Sequence[str] = ()
) -> Callable[[Path], None]:
    """A vocab.txt of characters alone, settings and words added to it."""

    def write(folder: Path) -> None:
        count = write_every_character(folder)
        if settings:
            write_settings(folder, **settings)
        if added:
            ids = {word: count + place for place, word in enumerate(added)}
            (folder / "added_tokens.json").write_text(json.dumps(ids))

    return write


def _with_json(folder: Path) -> None:
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    write_every_character(folder)
    BertWordPieceTokenizer(str(folder / "vocab.txt")).save(str(folder / "tokenizer.json"))


def _json_alone(folder: Path) -> None:
    _with_json(folder)
    (folder / "vocab.txt").unlink()


def _chinese(folder: Path) -> None:
    """Ideographs and letters, in the way of bert-base-chinese."""
    letters = [c + mark for c in SCRIPTS["letters"].lower() for mark in ("", "x")]
    pieces = [*SCRIPTS["ideographs"], *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *pieces]) + "\n", encoding="utf-8")
    write_settings(folder, do_lower_case=True, tokenize_chinese_chars=True)


def _trained(write: Callable[..., None], size: int, **options: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, texts(2000, 7), size, **options)


def _normalized(folder: Path) -> None:
    from tokenizers.normalizers import NFKC, Lowercase, Sequence

    normalizer = Sequence([NFKC(), Lowercase()])
    _trained(
        write_unigram, 30_000, normalizer=normalizer, tokenizer_class="PreTrainedTokenizerFast"
    )(folder)


_WORDS = ("film's", "<USER>", "straße", "你好")
# What writes the tokenizer files of each source folder.
SOURCES: dict[str, Callable[[Path], None]] = {
    "embedded": _embedded,
    PLAIN: _characters(),
    "tokenizer.json alone": _json_alone,
    "vocab.txt and tokenizer.json": _with_json,
    "cased": _characters({"do_lower_case": False}),
    "Chinese": _chinese,
    "accents stripped": _characters({"do_lower_case": False, "strip_accents": True}),
    "words added": _characters({"additional_special_tokens": ["<USER>"]}, _WORDS),
    "BPE": _trained(write_bpe, 30_000),
    "BPE of bytes": _trained(write_byte_level, 2000),
    "Unigram": _trained(write_unigram, 30_000),
    "Unigram, normalized": _normalized,
    "Japanese characters": _characters(
        {
            "tokenizer_class": "BertJapaneseTokenizer",
            "do_lower_case": False,
            "word_tokenizer_type": "basic",
            "subword_tokenizer_type": "character",
        }
    ),
    "cased, accents stripped, ideographs whole, words added": _characters(
        {
            "do_lower_case": False,
            "strip_accents": True,
            "tokenize_chinese_chars": False,
            "additional_special_tokens": ["<USER>"],
        },
        _WORDS[:2],
    ),
}


def write_exported(tokenizer: Any, vocab_size: int, folder: Path) -> Path:
    """Writes the folder that a run of a tiny model exports."""
    from flaxbert.data.tokenizer_files import write_files
    from flaxbert.heads import init_params
    from flaxbert.model.bert_config import BertConfig
    from flaxbert.weights.folder import write_model

    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=MAX_LENGTH,
        id2label=("a", "b"),
        problem_type="single_label_classification",
    )
    write_model(folder, config, init_params(config, 0), ())
    write_files(tokenizer.exported(MAX_LENGTH), folder)
    return folder


def served_ids(folder: Path, strings: Sequence[str]) -> Iterator[tuple[str, list[list[int]]]]:
    """Yields (way to serve, ids of each string) of an exported folder."""
    import tokenizers
    from transformers import AutoTokenizer, pipeline

    from flaxbert import Classifier

    encoded = Classifier.from_pretrained(folder).encode(strings)
    yield "flaxbert.Classifier", rows_of(encoded)
    auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    yield "AutoTokenizer", auto(list(strings), truncation=True)["input_ids"]
    if auto.is_fast:
        alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert alone.truncation is None and alone.padding is None
        alone.enable_truncation(MAX_LENGTH)
        yield "tokenizers, tokenizer.json", [row.ids for row in alone.encode_batch(list(strings))]
    if importlib.util.find_spec("torch"):
        pipe = pipeline("text-classification", model=str(folder), device="cpu")
        fed = (pipe.preprocess(string, truncation=True)["input_ids"] for string in strings)
        yield "pipeline", [row[0].tolist() for row in fed]


def rows_of(tokens: Any) -> list[list[int]]:
    bounds = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return [tokens.input_ids[first:last].tolist() for first, last in bounds]


def compare(name: str, strings: Sequence[str], folder: Path) -> dict[str, Any]:
    """Returns what was compared for a source, and for each way to serve the strings that differ."""
    from flaxbert.data.tokenize import Tokenizer

    source = folder / "source"
    source.mkdir(parents=True)
    SOURCES[name](source)
    vocab_size = 300_000
    tokenizer = Tokenizer(source, vocab_size=vocab_size, pad_token_id=0)
    tokens = tokenizer.encode(strings, None, max_length=MAX_LENGTH)
    trained = rows_of(tokens)
    exported = write_exported(tokenizer, vocab_size, folder / "model")
    wrong = {}
    for way, served in served_ids(exported, strings):
        rows = zip(strings, trained, served, strict=True)
        wrong[way] = [string for string, ours, theirs in rows if ours != theirs]
    return {
        "strings": len(strings),
        "tokens": len(tokens.input_ids),
        "unknown_share": round(tokens.unknown_share, 4),
        "cut": tokens.truncated,
        "mismatches": {way: len(found) for way, found in wrong.items()},
        "first_mismatches": {way: list(map(ascii, found[:5])) for way, found in wrong.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    begun = time.monotonic()
    strings = texts(arguments.count, arguments.seed)
    outcomes = {}
    with scratch() as folder:
        for number, name in enumerate(SOURCES):
            share = strings if name == PLAIN else strings[: arguments.count // 5]
            outcomes[name] = compare(name, share, folder / str(number))
            shutil.rmtree(folder / str(number))
            print(f"{name}: {outcomes[name]}", flush=True)
    right = not any(any(outcome["mismatches"].values()) for outcome in outcomes.values())
    if arguments.output:
        record = {
            "what": "token ids of random Unicode strings: training against four ways to serve",
            "command": f"python -m tests.soak.tokens --count={arguments.count} "
            f"--seed={arguments.seed}",
            "right": right,
            "strings": len(strings),
            "characters": sum(map(len, strings)),
            "strings_sha256": hashlib.sha256(json.dumps(strings).encode()).hexdigest(),
            "max_length": MAX_LENGTH,
            "sources": outcomes,
            "seconds": round(time.monotonic() - begun),
            "python": platform.python_version(),
            "versions": versions(("tokenizers", "transformers", "numpy")),
            "machine": machine(),
        }
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    raise SystemExit(not right)


if __name__ == "__main__":
    main()
