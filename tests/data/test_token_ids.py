"""Token ids of 2,000 hard Unicode strings equal those of the Python BertTokenizer.

The golden file was written by tests/soak/tokens.py, which compares 100,000 strings where
transformers 4 can be installed. Its reference ran with Unicode 14; every Python line must give the
same ids.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flaxbert.data.tokenize import Tokenizer
from tests.data.unicode_texts import SCRIPTS
from tests.soak.tokens import SETTINGS, digests, mismatches, our_ids, write_vocabularies

GOLDEN = Path(__file__).parents[1] / "golden" / "token_ids.npz"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def strings(golden) -> list[str]:
    return json.loads(golden["texts"].tobytes().decode("utf-8", "surrogatepass"))


@pytest.fixture(scope="module")
def vocabularies(minilm, tmp_path_factory):
    return write_vocabularies(tmp_path_factory.mktemp("vocabularies"))


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_equal_the_python_tokenizer(name, golden, strings, vocabularies, tmp_path):
    setting = SETTINGS[name]
    ids, lengths = our_ids(
        vocabularies[setting.vocabulary], setting.options, strings, tmp_path / "tokenizer"
    )
    if f"{name}/ids" in golden:
        theirs = (golden[f"{name}/ids"], golden[f"{name}/lengths"])
        assert mismatches(strings, theirs, (ids, lengths)) == []
    different = np.flatnonzero(digests(ids, lengths) != golden[f"{name}/digests"])
    assert [strings[index] for index in different] == []


def test_the_strings_are_hard(strings):
    assert len(strings) == 2000
    text = "".join(strings)
    for name, alphabet in SCRIPTS.items():
        assert len(set(text) & set(alphabet)) > min(20, len(set(alphabet)) // 2), name
    assert json.loads(str(np.load(GOLDEN)["versions"]))["unicode"] == "14.0.0"


def test_the_normalizer_of_transformers_5_would_be_seen(strings, golden, minilm):
    """Without our normalizer a part of the strings gets other ids: the comparison can fail."""
    tokenizer = Tokenizer(minilm, vocab_size=30522, pad_token_id=0)
    from transformers import AutoTokenizer

    tokenizer._tokenizer = AutoTokenizer.from_pretrained(str(minilm), local_files_only=True)
    tokenizer._normalize = lambda text: text.encode("utf-8", "ignore").decode()
    tokens = tokenizer.encode(strings, None, max_length=2**20)
    theirs = (golden["uncased/ids"], golden["uncased/lengths"])
    assert len(mismatches(strings, theirs, (tokens.input_ids, tokens.lengths))) > 200
