"""Makes a training process write down what it trained on and what it restored; Python imports this
file by itself where its folder is in PYTHONPATH.

FLAXBERT_TEST_WITNESS is a folder. Each process appends to PROCESS.jsonl there: of each update the
ids of the examples in its rows, and of a restored state the arrays that differ from state.npz, in
any bit of what its devices hold.
"""

from __future__ import annotations

import json
import os

from tests.soak.importing import after_import

_FOLDER = os.environ["FLAXBERT_TEST_WITNESS"]


def _write(**values) -> None:
    name = f"{os.environ.get('JAX_PROCESS_ID', '0')}.jsonl"
    with open(os.path.join(_FOLDER, name), "a") as file:
        file.write(json.dumps(values) + "\n")


def _of_batches(module) -> None:
    real = module.train_batch

    def train_batch(*arguments, **named):
        batch = real(*arguments, **named)
        ids = batch["example_ids"]
        blocks = list(named["share"].blocks)
        _write(step=named["step"], blocks=blocks, ids=ids[ids >= 0].tolist())
        return batch

    module.train_batch = train_batch


def _of_checkpoints(module) -> None:
    real = module.Checkpoints.restore

    def restore(self, *arguments):
        import jax
        import numpy as np

        state = real(self, *arguments)
        expected = np.load(os.path.join(_FOLDER, "state.npz"))
        different, shards, names = [], 0, set()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            name = "/".join(str(part.key) for part in path)
            names.add(name)
            for shard in leaf.addressable_shards:
                shards += 1
                ours, theirs = np.asarray(shard.data), expected[name][shard.index]
                if ours.dtype != theirs.dtype or ours.tobytes() != theirs.tobytes():
                    different.append(name)
        different += sorted(names ^ set(expected.files))
        _write(restored=sorted(set(different)), shards=shards)
        return state

    module.Checkpoints.restore = restore


after_import(
    {
        "flaxbert.data.batches": _of_batches,
        "flaxbert.storage.checkpoint": _of_checkpoints,
    }
)
