"""What gpu.py measures: models, batches, modes of PyTorch, and the figures aimed at."""

from __future__ import annotations

import dataclasses

from flaxbert.model.bert_config import BertConfig

BASE = BertConfig()
LARGE = BertConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
TINY = BertConfig(
    vocab_size=2000,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=128,
)

# What users run, from plain to tuned: float32, TF32, autocast, batches of like lengths, compiled,
# in CUDA graphs (where a small update waits for Python the most), and without padding.
SHORT_MODES = (
    "pad128-float32",
    "pad128-tf32",
    "dynamic-bfloat16",
    "pad128-bfloat16-compile",
    "grouped8-bfloat16",
    "grouped8-bfloat16-compile",
    "grouped8-bfloat16-graphs",
    "unpadded-bfloat16",
    "unpadded-bfloat16-compile",
)
FULL_MODES = (
    "pad128-float32",
    "pad128-tf32",
    "dynamic-bfloat16",
    "full-bfloat16",
    "full-bfloat16-compile",
    "full-bfloat16-graphs",
    "unpadded-bfloat16",
    "unpadded-bfloat16-compile",
)


@dataclasses.dataclass(frozen=True)
class Case:
    what: str
    shape: str  # of the model
    bert: BertConfig
    batch: int
    updates: int  # of each repeat
    slow_updates: int  # of the modes in float32
    modes: tuple[str, ...]  # of peers/pytorch.py
    target: str = ""
    length: int = 0  # of every sequence; 0 = those of the histogram


CASES = {
    "base-32": Case(
        "short sentences, 32 an update",
        "base",
        BASE,
        batch=32,
        updates=200,
        slow_updates=50,
        modes=SHORT_MODES,
        target="at most 3.5 ms an update; 1.3 times the best mode of PyTorch",
    ),
    "base-128": Case(
        "short sentences, 128 an update",
        "base",
        BASE,
        batch=128,
        updates=100,
        slow_updates=20,
        modes=SHORT_MODES,
        target="1.3 times the best mode of PyTorch",
    ),
    "base-512": Case(
        "short sentences, 512 an update",
        "base",
        BASE,
        batch=512,
        updates=100,
        slow_updates=10,
        modes=SHORT_MODES,
        target="at least 40,000 sequences/s; 1.3 times the best mode of PyTorch",
    ),
    "base-rows": Case(
        "full rows of 128 tokens, bert-base",
        "base",
        BASE,
        batch=128,
        updates=50,
        slow_updates=20,
        modes=FULL_MODES,
        target="MFU at least 45 % of the products measured here",
        length=128,
    ),
    "large-rows": Case(
        "full rows of 128 tokens, bert-large",
        "large",
        LARGE,
        batch=64,
        updates=50,
        slow_updates=10,
        modes=FULL_MODES,
        target="MFU at least 45 % of the products measured here",
        length=128,
    ),
}
SMOKE = Case(
    "smoke test",
    "tiny",
    TINY,
    batch=8,
    updates=3,
    slow_updates=3,
    modes=("pad128-tf32", "grouped8-bfloat16", "unpadded-bfloat16"),
)
