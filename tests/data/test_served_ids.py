"""What serves an exported model reads the ids that training read: the short form of a soak."""

from __future__ import annotations

import importlib.util

import pytest

from tests.data.unicode_texts import SCRIPTS, texts
from tests.soak.tokens import SOURCES, compare

STRINGS = texts(400, 1)
WAYS = {"flaxbert.Classifier", "AutoTokenizer", "tokenizers, tokenizer.json"}
if importlib.util.find_spec("torch"):
    WAYS |= {"pipeline"}


@pytest.mark.parametrize("name", ["embedded", "BPE", "BPE of bytes", "Unigram", [*SOURCES][-1]])
def test_served_ids_are_those_of_training(name, tmp_path):
    """PyTorch is imported for it; the last one has 260,000 tokens, a second for each reader."""
    outcome = compare(name, STRINGS, tmp_path)
    assert outcome["mismatches"] == dict.fromkeys(WAYS, 0), outcome["first_mismatches"]
    assert outcome["unknown_share"] < 0.6 and outcome["tokens"] > 5000


def test_another_tokenizer_would_be_seen(tmp_path, monkeypatch):
    from flaxbert.data.tokenize import Tokenizer

    exported = Tokenizer.exported

    def cased(self, max_length):
        files = exported(self, max_length)
        name = "tokenizer_config.json"
        return files | {name: files[name].replace(b'lower_case": true', b'lower_case": false')}

    monkeypatch.setattr(Tokenizer, "exported", cased)
    seen = compare("embedded", STRINGS, tmp_path)["mismatches"]
    assert min(seen["AutoTokenizer"], seen["flaxbert.Classifier"]) > 50


def test_the_strings_are_hard():
    text = set("".join(STRINGS))
    for name, alphabet in SCRIPTS.items():
        assert len(text & set(alphabet)) > min(15, len(set(alphabet)) // 3), name
