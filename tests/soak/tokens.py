"""Token ids of random Unicode strings against the Python BertTokenizer of transformers 4.

    python -m tests.soak.tokens --count=100000 --output=tests/results/tokens.json

transformers 5 has no Python tokenizer any more, so the reference runs in an environment of its own,
which is made where it is missing (transformers 4 without PyTorch, Python 3.11: Unicode 14). With
`--golden=tests/golden/token_ids.npz` it writes what tests/data/test_token_ids.py compares with
(committed with --count=2000 --seed=1 --pieces=4).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.unicode_texts import texts, write_every_character
from tests.soak.record import machine, scratch, versions

REFERENCE = "transformers==4.57.6"

# What runs in the other environment: it knows nothing of flaxbert.
_SCRIPT = """
import json, sys, unicodedata
import numpy as np, transformers
from transformers import BertTokenizer

texts_file, settings, output = sys.argv[1:]
texts = json.loads(open(texts_file, "rb").read().decode("utf-8", "surrogatepass"))
arrays = {}
for name, (vocabulary, options) in json.loads(settings).items():
    tokenizer = BertTokenizer(vocabulary, **options)
    assert not tokenizer.is_fast
    rows = [tokenizer.encode(text) for text in texts]
    arrays[name + "/ids"] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    arrays[name + "/lengths"] = np.array([len(row) for row in rows], np.int32)
versions = {"transformers": transformers.__version__, "unicode": unicodedata.unidata_version}
np.savez(output, versions=json.dumps({**versions, "python": sys.version.split()[0]}), **arrays)
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A vocabulary ("embedded" or "every character") and the options of the tokenizer."""

    vocabulary: str
    options: dict[str, Any]


SETTINGS = {
    "uncased": Setting("embedded", {"do_lower_case": True}),
    "cased": Setting("embedded", {"do_lower_case": False}),
    "uncased, every character": Setting("every character", {"do_lower_case": True}),
    "cased, every character": Setting("every character", {"do_lower_case": False}),
    "uncased with accents": Setting(
        "every character", {"do_lower_case": True, "strip_accents": False}
    ),
    "cased without accents": Setting(
        "every character", {"do_lower_case": False, "strip_accents": True}
    ),
    "cased, ideographs unsplit": Setting(
        "every character", {"do_lower_case": False, "tokenize_chinese_chars": False}
    ),
}


def write_vocabularies(folder: Path) -> dict[str, Path]:
    """Returns the two vocabulary files."""
    from flaxbert.storage.embedded import minilm_directory

    write_every_character(folder / "every")
    return {
        "embedded": minilm_directory() / "vocab.txt",
        "every character": folder / "every" / "vocab.txt",
    }


def our_ids(vocabulary: Path, options: dict[str, Any], strings: list[str], folder: Path):
    """Returns (ids end to end, lengths) of flaxbert's tokenizer for a bare vocabulary."""
    from flaxbert.data.tokenize import Tokenizer

    folder.mkdir(parents=True)
    shutil.copy(vocabulary, folder / "vocab.txt")
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    tokenizer = Tokenizer(folder, vocab_size=2**31 - 1, pad_token_id=0)
    tokens = tokenizer.encode(strings, None, max_length=2**30)
    return tokens.input_ids, tokens.lengths.astype(np.int32)


def reference_ids(
    python: Path, strings: list[str], settings: dict[str, Setting], files: dict[str, Path]
) -> dict[str, np.ndarray]:
    """Returns "<setting>/ids" and "/lengths" of the Python tokenizer, and its "versions"."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "texts.json").write_bytes(to_json(strings))
        chosen = {n: (str(files[s.vocabulary]), s.options) for n, s in settings.items()}
        output = folder / "ids.npz"
        arguments = [str(folder / "texts.json"), json.dumps(chosen), str(output)]
        subprocess.run([str(python), "-c", _SCRIPT, *arguments], check=True)
        return dict(np.load(output))


def reference_python(folder: Path) -> Path:
    """Returns the interpreter of the reference's environment; makes it if it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        if sys.version_info[:2] != (3, 11):
            raise SystemExit("The reference is Unicode 14: make its environment with Python 3.11.")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", REFERENCE], check=True)
    return python


def to_json(strings: list[str]) -> bytes:
    """Returns UTF-8 that keeps lone surrogates: written as ASCII, two of them would become one."""
    return json.dumps(strings, ensure_ascii=False).encode("utf-8", "surrogatepass")


def mismatches(strings: list[str], theirs: tuple, ours: tuple) -> list[str]:
    """Returns the strings whose ids differ."""
    rows = [np.split(ids, np.cumsum(lengths)[:-1]) for ids, lengths in (theirs, ours)]
    return [text for text, a, b in zip(strings, *rows, strict=True) if not np.array_equal(a, b)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pieces", type=int, default=12, help="at most so many in a string")
    parser.add_argument("--reference", type=Path, default=Path(".venv-transformers4"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--golden", type=Path)
    arguments = parser.parse_args()

    begun = time.monotonic()
    python = reference_python(arguments.reference)
    strings = texts(arguments.count, arguments.seed, pieces=arguments.pieces)
    with scratch() as folder:
        files = write_vocabularies(folder)
        theirs = reference_ids(python, strings, SETTINGS, files)
        wrong = {}
        for number, (name, setting) in enumerate(SETTINGS.items()):
            path = folder / f"ours-{number}"
            ours = our_ids(files[setting.vocabulary], setting.options, strings, path)
            expected = (theirs[f"{name}/ids"], theirs[f"{name}/lengths"])
            wrong[name] = mismatches(strings, expected, ours)
            print(f"{name}: {len(wrong[name])} of {len(strings)} differ")
    if arguments.golden:
        write_golden(arguments.golden, strings, theirs)
    if arguments.output:
        record = {
            "what": "token ids of random Unicode strings, against the Python BertTokenizer",
            "command": f"python -m tests.soak.tokens --count={arguments.count} "
            f"--seed={arguments.seed} --pieces={arguments.pieces}",
            "strings": len(strings),
            "characters": sum(map(len, strings)),
            "strings_sha256": hashlib.sha256(to_json(strings)).hexdigest(),
            "tokens": {name: len(theirs[f"{name}/ids"]) for name in SETTINGS},
            "settings": {name: dataclasses.asdict(setting) for name, setting in SETTINGS.items()},
            "mismatches": {name: len(found) for name, found in wrong.items()},
            "first_mismatches": {n: list(map(ascii, found[:5])) for n, found in wrong.items()},
            "seconds": round(time.monotonic() - begun),
            "reference": json.loads(str(theirs["versions"])),
            "python": platform.python_version(),
            "versions": versions(("tokenizers", "transformers", "numpy")),
            "machine": machine(),
        }
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    raise SystemExit(1 if any(wrong.values()) else 0)


def digests(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns 8 bytes of SHA-256 for each row of ids."""
    rows = np.split(ids.astype("<i4"), np.cumsum(lengths)[:-1])
    return np.array(
        [np.frombuffer(hashlib.sha256(row.tobytes()).digest()[:8], "<u8")[0] for row in rows]
    )


def write_golden(path: Path, strings: list[str], theirs: dict[str, np.ndarray]) -> None:
    """Writes the strings and the reference's answers: ids, or their digests where ids are many."""
    arrays: dict[str, np.ndarray] = {}
    for name, setting in SETTINGS.items():
        ids, lengths = theirs[f"{name}/ids"], theirs[f"{name}/lengths"]
        if setting.vocabulary == "embedded":
            arrays[f"{name}/ids"] = ids.astype(np.uint16)
            arrays[f"{name}/lengths"] = lengths.astype(np.uint16)
        arrays[f"{name}/digests"] = digests(ids, lengths)
    text = np.frombuffer(to_json(strings), np.uint8)
    np.savez_compressed(path, texts=text, versions=theirs["versions"], **arrays)


if __name__ == "__main__":
    main()
