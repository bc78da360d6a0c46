"""What several processes cost beside one, on the same cores and for the same updates.

    python benchmarks/processes.py [--turns=10] [--batch_sizes=64,256]

Trains the quickstart's model and sentences on four CPU devices of this machine: in one process, in
two with two devices each, and in four with one each. Compares the updates as the runs themselves
tell them; and on the host what a process does for an update: placing all sequences, and laying out
its rows. For a quiet machine; writes results/processes.json.

The surprising thing: the three runs are there at once, and all but one are stopped (SIGSTOP). They
take turns of seconds, because the speed of a shared machine drifts within minutes by more than what
is to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # flaxbert need not be installed

from quickstart import cpu_name

from flaxbert.data.batches import Examples, Share, count_update, plan_training, train_batch
from flaxbert.data.tokenize import Tokens
from tests.hosts.several import Several, started, train
from tests.soak.record import versions, workplace

OUTPUT = Path(__file__).parent / "results" / "processes.json"
LAYOUTS = {1: 4, 2: 2, 4: 1}  # processes: devices of each
WARM_UP = 4  # updates before the first turn, of which one more may be told while it ends
BEGUN, COUNTED = 2, 4  # updates of a turn: those that were begun before it do not count

# Who is stopped is not lost, stuck, or too late for an exchange.
_PATIENCE = 3600
_FLAGS = [
    "--config=configs/quickstart.py",
    "--config.train.steps=100_000",
    "--config.train.eval_every=100_000",
    "--config.checkpoint.every=100_000",
    "--config.log.every=1",
    "--config.mesh.data=-1",
    f"--config.processes.lost_after={_PATIENCE}",
    f"--config.processes.stuck_after={_PATIENCE}",
]
_XLA_FLAGS = f"--xla_cpu_collective_call_terminate_timeout_seconds={_PATIENCE}"


class Turns:
    """One run, which trains in its turns only."""

    def __init__(self, processes: Several, workdir: Path) -> None:
        self._processes = processes
        self._all = range(len(processes.children))
        self._metrics = workdir / "metrics.jsonl"

    def told(self) -> list[float]:
        """Returns the sequences a second of each update so far."""
        if not self._metrics.exists():
            return []
        # The last line may be half written.
        lines = self._metrics.read_text().rpartition("\n")[0].splitlines()
        names = ("train", "samples_per_second")
        return [x["value"] for x in map(json.loads, lines) if (x["split"], x["name"]) == names]

    def pause_at(self, update: int) -> None:
        """Waits for an update and stops the run."""
        while len(self.told()) < update:
            codes = [child.poll() for child in self._processes.children]
            assert codes == [None] * len(codes), (codes, self._processes.said())
            time.sleep(0.2)  # reading takes some of the cores; updates take seconds
        self._processes.signal(signal.SIGSTOP, self._all)

    def train_to(self, update: int) -> None:
        self._processes.signal(signal.SIGCONT, self._all)
        self.pause_at(update)


def speeds_of(batch_size: int, turns: int) -> dict[int, list[float]]:
    """Returns {processes: sequences a second of each update}; the same updates of all runs."""
    with ExitStack() as stack:
        runs = {}
        for count, devices in LAYOUTS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            flags = [
                *_FLAGS,
                f"--workdir={folder / 'run'}",
                f"--config.train.batch_size={batch_size}",
            ]
            env = {"XLA_FLAGS": _XLA_FLAGS}
            processes = stack.enter_context(started(folder, count, devices, train(flags), env=env))
            runs[count] = Turns(processes, folder / "run")
            runs[count].pause_at(WARM_UP)
        updates = WARM_UP + 1
        found: dict[int, list[float]] = {count: [] for count in runs}
        for turn in range(turns):
            counts = slice(updates + BEGUN, updates + BEGUN + COUNTED)
            updates = counts.stop
            order = list(runs)
            for count in order[turn % len(order) :] + order[: turn % len(order)]:
                runs[count].train_to(updates)
                found[count] += runs[count].told()[counts]
            medians = (statistics.median(values[-COUNTED:]) for values in found.values())
            told = ", ".join(f"{value:.1f}" for value in medians)
            print(f"{batch_size} an update, turn {turn + 1}: {told} sequences/s", flush=True)
    return found


def overhead(one: list[float], several: list[float]) -> dict[str, float]:
    """Returns by how much the same updates take longer in several processes, and how sure that is.

    Of all seconds; "low" and "high" hold 95 % of what comes out when turns are drawn again.
    """
    seconds = [(1 / np.array(speeds)).reshape(-1, COUNTED).sum(1) for speeds in (one, several)]
    turns = len(seconds[0])
    drawn = np.random.default_rng(0).integers(0, turns, (10_000, turns))
    again = seconds[1][drawn].sum(1) / seconds[0][drawn].sum(1) - 1
    low, high = np.quantile(again, [0.025, 0.975])
    return {
        "overhead": float(seconds[1].sum() / seconds[0].sum() - 1),
        "low": float(low),
        "high": float(high),
    }


def host_work(batch_size: int) -> dict[str, float]:
    """Returns {processes: milliseconds of one process for an update's rows}."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.2, 0.5, 100_000).astype(int), 4, 128)
    total = int(lengths.sum())
    tokens = Tokens(
        random.integers(1, 30_000, total).astype(np.uint16),
        np.zeros(total, np.uint8),
        np.cumsum([0, *lengths]),
        0,
        0.0,
    )
    examples = Examples(tokens, random.integers(0, 2, len(lengths)).astype(np.int32))
    which: dict[str, Any] = {"batch_size": batch_size, "seed": 0}
    plan = plan_training(examples, **which, steps=20, packing="pack", row_multiple=8)
    found = {}
    for count in (1, 2, 4, 8):
        times = []
        for step in range(20):
            begun = time.perf_counter()
            train_batch(examples, plan, **which, step=step, share=Share((0,), count))
            count_update(examples, **which, step=step, computed=1)
            times.append(time.perf_counter() - begun)
        found[str(count)] = 1e3 * statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--batch_sizes", default="64,256", help="sequences of an update")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    with workplace():
        speeds = {size: speeds_of(size, arguments.turns) for size in sizes}
    overheads = {
        size: {count: overhead(found[1], found[count]) for count in LAYOUTS if count > 1}
        for size, found in speeds.items()
    }
    record = {
        "what": "training on four CPU devices in one, two and four processes of one machine",
        "command": f"python benchmarks/processes.py --turns={arguments.turns} "
        f"--batch_sizes={arguments.batch_sizes}",
        "sequences_per_second_by_batch_size_and_processes": speeds,
        "overhead_by_batch_size_and_processes": overheads,
        "host_milliseconds_of_an_update": {
            str(size): host_work(size) for size in (512, 4096, 16_384)
        },
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions(),
    }
    OUTPUT.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(overheads, indent=1))


if __name__ == "__main__":
    main()
