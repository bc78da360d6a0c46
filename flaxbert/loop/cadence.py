"""The intervals of logging, evaluation and saving."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often a run logs, evaluates and saves, in updates, and when it ends."""

    total: int
    per_epoch: int

    log_every: int
    eval_every: int
    save_every: int
    patience: int
    nonfinite_limit: int
    best_metric: str

    def epoch(self, step: int) -> float:
        return step / self.per_epoch
