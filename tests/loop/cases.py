"""The updates and schedules that are compared with PyTorch."""

from __future__ import annotations

from flaxbert.config import Optim
from flaxbert.data.batches import Examples
from tests.loop.harness import examples
from tests.reference import embedded_config

UPDATES = Optim(learning_rate=1e-3, warmup=0.2, clip_norm=0.5, weight_decay=0.1)
EMBEDDED_UPDATES = Optim(learning_rate=5e-5, warmup=0.2, clip_norm=0.5, weight_decay=0.1)

SCHEDULE_STEPS = 50
SCHEDULES = {
    f"{schedule}, {warmup}": Optim(learning_rate=3e-5, schedule=schedule, warmup=warmup)
    for schedule in ("linear", "cosine", "constant")
    for warmup in (0.0, 0.1, 7.0)
}


def embedded_examples() -> Examples:
    return examples(32, config=embedded_config())
