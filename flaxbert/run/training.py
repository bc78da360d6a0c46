"""A run that is ready to train: its compiled programs, its batches and its export."""

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


@dataclasses.dataclass(frozen=True)
class Training:
    """A run with its compiled programs; `run.control` trains it."""

    run: Run  # in as many micro-batches as fit the devices
    update: CompiledUpdate  # (state, batch) -> state, sums
    evaluate: Evaluate | None  # parameters -> metrics; None: no validation data
    export: Exporter  # writes model/
    started: float  # time.perf_counter() of this start
    utilisation: Callable[[int, int, float], dict[str, float]]
    stop: StopSignal

    @classmethod
    def compile(
        cls,
        run: Run,
        state: Any,
        *,
        export: Exporter,
        started: float,
        stop: StopSignal,
        saving: Callable[[], bool],
    ) -> Training:
        """Compiles a run's programs; `saving` says whether this process is writing a checkpoint."""
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
            started=started,
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
    def facts(self) -> dict[str, Any]:
        """What run.json records beside the progress."""
        return self.export.facts

    @property
    def cadence(self) -> Cadence:
        return self.run.cadence

    @property
    def learning_rate(self) -> Callable[[int], Any]:
        return self.run.optimizer.schedule

    @property
    def several(self) -> bool:
        """Whether several processes train this run: they agree to stop inside the update."""
        return self.run.group.count > 1

    @property
    def interrupted(self) -> bool:
        """Whether a stop was requested of this process, if it is the only one."""
        return self.stop.requested and not self.several

    def beat(self) -> None:
        """Tells the watchdog that the run makes progress."""
        self.run.group.beat()
