"""Random data files, in process: accepted or refused, never anything else.

A few hundred here; `python -m tests.soak.fuzz_data` does 100,000 and some by real processes.
"""

from __future__ import annotations

import pytest

from flaxbert.data.tokenize import Tokenizer
from tests.soak import fuzz_data


@pytest.fixture(scope="module")
def tokenizer(minilm) -> Tokenizer:
    return Tokenizer(minilm, vocab_size=30522, pad_token_id=0)


def test_random_files(tokenizer):
    outcomes, reasons, failures = fuzz_data.fuzz_files(350, 20, tokenizer)
    assert not failures, failures[0]
    # Otherwise nothing was tried: each format has both outcomes, for many different reasons.
    for kind, counts in outcomes.items():
        assert counts["accepted"] > 5 and counts["refused"] > 5, kind
    assert len(reasons) > 15


def test_a_failure_is_found_and_named(tokenizer, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("a defect")

    monkeypatch.setattr("flaxbert.data.checks.learn_labels", broken)
    _, _, failures = fuzz_data.fuzz_files(20, 20, tokenizer)
    assert failures and "KeyError: 'a defect'" in failures[0] and "Case(" in failures[0]


def test_a_case_depends_on_its_number_alone(tmp_path):
    def content(number: int) -> dict[str, bytes]:
        for path in tmp_path.iterdir():
            path.unlink()
        fuzz_data.make_case(3, number, tmp_path)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    first = content(11)
    assert content(12) != first
    assert content(11) == first
