"""Checks that transformers 4.57.6 reads what `convert --format=flax` writes, bit for bit.

    python -m flaxbert.convert --from=MODEL --to=/tmp/pytorch
    python -m flaxbert.convert --from=MODEL --to=/tmp/flax --format=flax
    python tests/golden/check_flax.py /tmp/pytorch /tmp/flax

The last line runs in the environment of make_formats.py (flax): its Flax class loads both folders,
the first through its own conversion from PyTorch, and compares every parameter and the logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from transformers import FlaxBertForSequenceClassification, FlaxBertModel


def main(pytorch: str, flax: str) -> None:
    architecture = json.loads((Path(flax) / "config.json").read_text())["architectures"][0]
    kind = FlaxBertModel if architecture == "BertModel" else FlaxBertForSequenceClassification
    models = [kind.from_pretrained(pytorch, from_pt=True), kind.from_pretrained(flax)]
    # A parameter that a folder lacks is random in its tree, and so cannot be equal.
    trees = [flatten_dict(model.params, sep="/") for model in models]
    expected, actual = trees
    if expected.keys() != actual.keys():
        raise SystemExit(f"other parameters: {sorted(expected.keys() ^ actual.keys())}")
    for path in expected:
        a, b = np.asarray(expected[path]), np.asarray(actual[path])
        if (a.shape, a.dtype, a.tobytes()) != (b.shape, b.dtype, b.tobytes()):
            raise SystemExit(f"{path} differs")
    ids = np.arange(10)[None] % models[0].config.vocab_size
    outputs = [model(ids).to_tuple()[0] for model in models]
    if not np.array_equal(*map(np.asarray, outputs), equal_nan=True):
        raise SystemExit("the outputs differ")
    print(f"{kind.__name__}: {len(actual)} parameters and the outputs are bit-equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
