"""When what is due in a run."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When what is due, in updates."""

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
