"""Stops a run after each of its updates and goes on; poisons each update with NaN and infinity.

    python -m tests.soak.resume_points --output=tests/results/resume_points.json

Stops: dropout, accumulation, packing and several epochs are on. A run of 60 updates is asked to
stop after update k, as a signal asks; the same call again goes on to the end. Everything must equal
the run that nobody stopped, bit for bit, in float32 and with bfloat16 compute.

Poison: update k of 60 gets a loss or a gradient that is not finite. The final parameters and
moments must equal those of a run in which that update was computed and then taken back.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.commands import train_flags
from tests.soak.record import machine, scratch, versions
from tests.soak.resume import compare

UPDATES = 60
DTYPES = ("float32", "bfloat16")


class StopAfter:
    """Stands in for the signals of a run: asked to stop once an update has been sent."""

    def __init__(self, update: int) -> None:
        self._update = update
        self.sent = 0

    @property
    def requested(self) -> bool:
        return self.sent >= self._update

    @contextlib.contextmanager
    def deferred(self, agreed: Any) -> Iterator[None]:
        yield

    def check(self) -> None:
        """Evaluations run to their end: the stop comes after the update, not in the middle."""


def flags_for(model: Path, train: Path, dev: Path, workdir: Path, dtype: str) -> list[str]:
    """96 sequences by 16: an epoch is 6 updates; evaluations, checkpoints and log lines fall on
    edges of epochs and beside them."""
    return train_flags(
        model,
        train,
        workdir,
        data__validation=dev,
        model__dtype=dtype,
        train__steps=UPDATES,
        train__accumulate=2,
        train__eval_every=15,
        checkpoint__every=18,
        log__every=7,
    )


def run(flags: list[str], stop_after: int = UPDATES + 1) -> bool:
    """Runs `train` in this process; returns whether it was stopped."""
    from absl import flags as absl_flags

    from flaxbert import train
    from flaxbert.errors import InterruptedRun
    from flaxbert.hosts.group import SingleProcess
    from flaxbert.run.training import Training
    from flaxbert.shell import cli
    from flaxbert.storage.workdir import open_workdir

    values = absl_flags.FlagValues()
    train.define_flags(values)
    with mock.patch.object(sys, "argv", ["train", *flags]):
        values(sys.argv)
        config = cli.read_config(values)
    workdir = open_workdir(values.workdir)
    stop = StopAfter(stop_after)
    real = Training.batch

    def counted(training: Training, step: int) -> Any:
        stop.sent = step  # the batch of update k + 1 is made when k have been sent
        return real(training, step)

    with (
        workdir.store.locked(workdir.lock),
        mock.patch.object(Training, "batch", counted),
        _programs(config.model.dtype),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            train.train(config, workdir, SingleProcess(), stop)  # type: ignore[arg-type]
        except InterruptedRun:
            return True
    return False


@contextlib.contextmanager
def _programs(dtype: str) -> Iterator[None]:
    """Shares compiled programs between the starts, of which compiling was three quarters; real
    processes, which compile for themselves, are those of tests/soak/interrupt.py."""
    from flaxbert.run import compile

    compile_step, make_forward = compile.compile_step, compile.make_forward

    def shared(step: Any, state: Any, batch: Any, seeds: Any) -> Any:
        key = (dtype, *(batch[name].shape for name in sorted(batch)))
        if key not in _STEPS:
            _STEPS[key] = compile_step(step, state, batch, seeds)
        return _STEPS[key]

    def forward(*arguments: Any, **named: Any) -> Any:
        key = (*arguments, *named.values())
        if key not in _FORWARDS:
            _FORWARDS[key] = make_forward(*arguments, **named)
        return _FORWARDS[key]

    with (
        mock.patch.object(compile, "compile_step", shared),
        mock.patch.object(compile, "make_forward", forward),
    ):
        yield


_STEPS: dict[Any, Any] = {}
_FORWARDS: dict[Any, Any] = {}


def stop_everywhere(
    model: Path, files: dict[str, Path], folder: Path, dtype: str, points: Iterable[int]
) -> dict[int, list[str]]:
    """Returns {update: what differed from the run that was not stopped}."""
    whole = folder / f"whole-{dtype}"
    assert not run(flags_for(model, files["train"], files["dev"], whole, dtype))
    outcomes = {}
    for point in points:
        workdir = folder / f"stopped-{dtype}-{point}"
        flags = flags_for(model, files["train"], files["dev"], workdir, dtype)
        stopped = run(flags, point)
        saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
        assert stopped and saved == point, (point, stopped, saved)
        assert not run(flags)
        outcomes[point] = compare(whole, workdir)
        shutil.rmtree(workdir)
    return outcomes


KINDS = ("nan in a weight", "infinite loss", "nan in a gradient", "one bad micro-batch")


def poison_everywhere(points: Iterable[int]) -> dict[tuple[str, int], list[str]]:
    """Returns {(kind, update): arrays that differ from the run without that update}."""
    import jax

    from tests.loop.poison import Loop

    loop = Loop(UPDATES)
    outcomes = {}
    for point in points:
        expected = jax.device_get(loop.run(taken_back=point))
        for kind in KINDS:
            state = jax.device_get(loop.run(poisoned=point, kind=kind))
            pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(state), strict=True)
            outcomes[kind, point] = [
                jax.tree_util.keystr(path)
                for (path, wanted), found in pairs
                if np.asarray(wanted).tobytes() != np.asarray(found).tobytes()
            ]
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=UPDATES - 1, help="the first N points")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    import jax

    jax.config.update("jax_platforms", "cpu")
    from tests.inputs import write_reviews, write_tiny_bert

    begun = time.monotonic()
    points = range(1, min(arguments.updates, UPDATES - 1) + 1)
    with scratch() as folder:
        jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        model, files = write_tiny_bert(folder / "model"), write_reviews(folder / "reviews")
        stops = {}
        for dtype in DTYPES:
            stops[dtype] = stop_everywhere(model, files, folder, dtype, points)
            print(dtype, f"{time.monotonic() - begun:.0f} s", flush=True)
        poisons = poison_everywhere(range(1, points[-1] + 2))
    record = {
        "what": "stop after every update and go on; every update poisoned: bit-identical outcomes",
        "command": f"python -m tests.soak.resume_points --updates={points[-1]}",
        "updates": UPDATES,
        "stops": {
            dtype: {
                "points": len(found),
                "bit_identical": sum(not different for different in found.values()),
                "different": {k: v for k, v in found.items() if v},
            }
            for dtype, found in stops.items()
        },
        "poisons": {
            "kinds": KINDS,
            "cases": len(poisons),
            "bit_identical": sum(not different for different in poisons.values()),
            "different": {f"{kind}, update {k}": v for (kind, k), v in poisons.items() if v},
        },
        "seeds": {"run": 0, "poison": 1},
        "seconds": round(time.monotonic() - begun),
        "python": platform.python_version(),
        "versions": versions(),
        "machine": machine(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({"stops": record["stops"], "poisons": record["poisons"]}, indent=1))
    different = [*poisons.values(), *(found for run in stops.values() for found in run.values())]
    raise SystemExit(1 if any(different) else 0)


if __name__ == "__main__":
    main()
