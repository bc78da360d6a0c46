"""The quickstart: a small BERT on real sentences, without a model hub.

    python -m flaxbert.train --config=configs/quickstart.py

all-MiniLM-L6-v2 (6 layers, hidden size 384) on 7,676 movie-review sentences. Both come as wheels
from the Python package registry, checked by SHA-256. `benchmarks/results/quickstart.json` has the
expected accuracy, with seeds and spread.

"""

from flaxbert.config import default_config


def get_config(arg: str = ""):
    """Returns the quickstart's config; it takes no argument after the colon."""
    if arg:
        raise ValueError(f"configs/quickstart.py takes no argument, got {arg!r}")
    config = default_config()
    config.model.path = "embedded:minilm"  # all-MiniLM-L6-v2, Apache-2.0
    config.data.task = "rotten_tomatoes"  # negative / positive, balanced
    config.data.max_length = 128  # the longest sentence has fewer tokens: nothing is cut
    config.train.batch_size = 32  # sequences per update
    config.train.epochs = 3.0  # passes over the sentences
    config.optim.learning_rate = 5e-5  # peak; linear decay to 0
    config.optim.warmup = 0.1  # share of the updates
    config.optim.weight_decay = 0.01  # not for biases and LayerNorm
    config.optim.clip_norm = 1.0  # global gradient norm
    return config
