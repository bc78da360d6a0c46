"""What several processes cost beside one, on the same cores and for the same updates.

    python benchmarks/processes.py [--rounds=3] [--sequences=2048] [--batch_sizes=64,256]

Trains the quickstart's model and sentences on four CPU devices of this machine: in one process, in
two with two devices each, and in four with one each, taking turns. Compares the updates as the run
itself tells them, without the save at the end, and on the host what a process does for an update:
placing all sequences, and laying out its rows. For a quiet machine; writes results/processes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # flaxbert need not be installed

from quickstart import cpu_name

from flaxbert.data.batches import Examples, Share, count_update, plan_training, train_batch
from flaxbert.data.tokenize import Tokens
from tests.processes.several import started, train
from tests.soak.record import versions, workplace

OUTPUT = Path(__file__).parent / "results" / "processes.json"
LAYOUTS = {1: 4, 2: 2, 4: 1}  # processes: devices of each


def speed(folder: Path, count: int, updates: int, batch_size: int) -> float:
    """Returns the median of an update's sequences a second in a run of so many processes.

    Without the first two, which warm up. The one save is at the end.
    """
    workdir = folder / "run"
    flags = [
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        f"--config.train.steps={updates}",
        f"--config.train.batch_size={batch_size}",
        f"--config.train.eval_every={updates}",
        f"--config.checkpoint.every={updates}",
        "--config.log.every=1",
        "--config.mesh.data=-1",
    ]
    as_usual = {"XLA_FLAGS": ""}
    with started(folder, count, LAYOUTS[count], train(flags), env=as_usual) as run:
        assert run.codes(3600) == [0] * count, run.said()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    told = [x["value"] for x in lines if (x["split"], x["name"]) == ("train", "samples_per_second")]
    return statistics.median(told[2:])


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=2048, help="of a run")
    parser.add_argument("--batch_sizes", default="64,256", help="sequences of an update")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    speeds: dict[int, dict[int, list[float]]] = {
        size: {count: [] for count in LAYOUTS} for size in sizes
    }
    with workplace():
        for _ in range(arguments.rounds):
            for size, found in speeds.items():
                for count, values in found.items():
                    with tempfile.TemporaryDirectory() as folder:
                        values.append(speed(Path(folder), count, arguments.sequences // size, size))
                    print(f"{size} in {count} processes: {values[-1]:.1f} sequences/s", flush=True)
    # Of each round, since the machine may be faster in one than in another.
    overhead = {
        size: {
            count: statistics.median(
                one / several - 1 for one, several in zip(found[1], values, strict=True)
            )
            for count, values in found.items()
        }
        for size, found in speeds.items()
    }
    record = {
        "what": "training on four CPU devices in one, two and four processes of one machine",
        "command": f"python benchmarks/processes.py --rounds={arguments.rounds} "
        f"--sequences={arguments.sequences} --batch_sizes={arguments.batch_sizes}",
        "sequences_per_second_by_batch_size_and_processes": speeds,
        "overhead_by_batch_size_and_processes": overhead,
        "host_milliseconds_of_an_update": {
            str(size): host_work(size) for size in (512, 4096, 16_384)
        },
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions(),
    }
    OUTPUT.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(overhead, indent=1))


if __name__ == "__main__":
    main()
