"""From each format to a trained folder: Google's and a Flax one in, texts answered at the end."""

from __future__ import annotations

import csv
import json
import shutil
import string

import pytest

from tests.commands import call, train_flags
from tests.weights.formats.test_formats import GOLDEN

pytestmark = pytest.mark.slow

# 50 entries, as the golden models have: special tokens, letters, and letters inside of words.
VOCABULARY = (
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    + list(string.ascii_lowercase)
    + [f"##{letter}" for letter in string.ascii_lowercase[:19]]
)


@pytest.mark.parametrize("name", ["tf1", "flax-base"])
def test_train_from_a_folder_with_a_vocabulary_only(name, tmp_path, capsys):
    source, data = tmp_path / "uncased_L-2_H-8_A-2", tmp_path / "train.csv"
    shutil.copytree(GOLDEN / name, source)
    (source / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([("A bed", "good"), ("a cab", "bad")] * 8)
    workdir = tmp_path / "run"
    flags = train_flags(source, data, workdir, data__max_length=16, train__steps=2)
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert "not a parameter" not in done.err
    texts, answers = tmp_path / "texts.txt", tmp_path / "answers.jsonl"
    texts.write_text("A BED\na bed\n")
    command = (f"--model={workdir / 'model'}", f"--input={texts}", f"--output={answers}")
    done = call("predict", *command, capsys=capsys)
    assert done.code == 0, done.err
    upper, lower = (json.loads(line) for line in answers.read_text().splitlines())
    assert upper == lower  # without a word about case a vocabulary is read as uncased
    # Its checkpoint is a model too, and predicts the same as the exported folder.
    (checkpoint,) = (workdir / "checkpoints").glob("2")
    command = (f"--model={checkpoint}", f"--input={texts}", f"--output={tmp_path / 'again.jsonl'}")
    done = call("predict", *command, capsys=capsys)
    assert done.code == 0, done.err
    assert (tmp_path / "again.jsonl").read_text() == answers.read_text()
