"""What the loop trains: a run with its compiled programs, its batches and its export.

`loop.control` knows a run by these methods alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flaxbert.config import seed_for
from flaxbert.data import batches
from flaxbert.data.batches import Batch
from flaxbert.loop.agreement import Agreement
from flaxbert.loop.cadence import Cadence
from flaxbert.loop.flops import Utilisation, peak_of
from flaxbert.methods import params_of
from flaxbert.run.compile import CompiledUpdate, Evaluate, compile_evaluation, compile_update
from flaxbert.run.one_run import Run
from flaxbert.run.results import Exporter
from flaxbert.shell.signals import StopSignal
from flaxbert.storage import compiled


@dataclasses.dataclass(frozen=True)
class Training:
    """A run that is ready for its first update."""

    run: Run  # as it fits the devices
    update: CompiledUpdate  # (state, batch) -> state, sums
    evaluate: Evaluate | None  # parameters -> metrics; None: no validation data
    export: Exporter  # writes model/
    facts: dict[str, Any]  # what run.json records beside the progress
    cadence: Cadence
    started: float  # time.perf_counter() of this start
    learning_rate: Callable[[int], Any]
    utilisation: Callable[[int, int, float], dict[str, float]]
    stop: StopSignal

    @classmethod
    def compile(
        cls,
        run: Run,
        state: Any,
        *,
        export: Exporter,
        facts: dict[str, Any],
        started: float,
        stop: StopSignal,
        saving: Callable[[], bool],
    ) -> Training:
        """Compiles a run's programs; `saving` tells whether this process still saves."""
        agreement = None
        if run.group.count > 1:
            agreement = Agreement(run.mesh, lambda: stop.requested, saving)
        update = compile_update(run, state, agreement)
        check = agreement.check if agreement else stop.check
        run = update.run
        return cls(
            run=run,
            update=update,
            evaluate=compile_evaluation(run, params_of(state), check),
            export=export,
            facts=facts,
            cadence=run.cadence,
            started=started,
            learning_rate=run.optimizer.schedule,
            utilisation=Utilisation(run.inputs.bert, peak_of(run.mesh, run.dtype)).of,
            stop=stop,
        )

    def batch(self, step: int) -> tuple[Batch, dict[str, int]]:
        """Returns this process's rows of an update, and counts of all rows."""
        run, examples = self.run, self.run.inputs.train
        seed, share = seed_for(run.config, "data"), run.share
        which = {"batch_size": run.config.train.batch_size, "seed": seed, "step": step}
        batch = batches.train_batch(examples, run.shapes.train, **which, share=share)
        computed = batch["sequence_ids"].size * share.of // len(share.blocks)
        return batch, batches.count_update(examples, **which, computed=computed)

    @property
    def several(self) -> bool:
        """Whether other processes train the same run: they agree inside the update."""
        return self.run.group.count > 1

    @property
    def interrupted(self) -> bool:
        """Whether this process, the only one, was asked to stop."""
        return self.stop.requested and not self.several

    def start_facts(self) -> str:
        """Returns what else to tell of the start, once the first update is done."""
        return compiled.told()

    def beat(self) -> None:
        """Tells the other processes that something was finished."""
        self.run.group.beat()
