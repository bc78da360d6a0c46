"""What checkpoints every 50 updates cost the quickstart: time and memory, against none.

    python benchmarks/checkpoint_cost.py [--repeats=3] [--updates=200]

Real commands on the quickstart's model and data, with and without in turn. "Without" saves once, at
the end, which the steady speed does not count. Run it on a quiet machine. Two shares of time: what
saves held training up (the copy, and waiting for the save before), and how much slower updates
were in all, which also has what the writing thread takes from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from quickstart import cpu_name

RESULT = Path(__file__).parent / "results" / "checkpoint_cost.json"
EVERY = 50
_NEVER = 1_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for repeat in range(arguments.repeats):
        # Their order changes: a machine that warms up must not favour one of them.
        for name in sorted(runs, reverse=bool(repeat % 2)):
            every = EVERY if name == "with" else _NEVER
            runs[name].append(run(every, arguments.updates))
            print(name, runs[name][-1], flush=True)
    median = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    saved, plain = median["with"], median["without"]
    record = {
        "what": f"checkpoint.every={EVERY} on the quickstart against no checkpoint but the last",
        "command": f"python benchmarks/checkpoint_cost.py --repeats={arguments.repeats} "
        f"--updates={arguments.updates}",
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "flax", "orbax-checkpoint")},
        },
        # Saves before the last one: that one is in both.
        "share_of_time_held_up": round(
            (saved["saving_seconds"] - plain["saving_seconds"]) / saved["training_seconds"], 4
        ),
        "share_of_time_slower": round(
            1 - saved["sequences_per_second"] / plain["sequences_per_second"], 4
        ),
        "share_of_memory_at_rest": round(saved["mib_at_rest"] / plain["mib_at_rest"] - 1, 4),
        "targets": {"time": 0.03, "memory": 0.10},
        "medians": median,
        "runs": runs,
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({name: record[name] for name in record if name != "runs"}, indent=2))


def run(every: int, updates: int) -> dict[str, float]:
    """Trains once; returns its times, its speed and the median of its memory between saves."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "flaxbert.train", "--config=configs/quickstart.py"]
        command += [f"--workdir={workdir}", f"--config.train.steps={updates}"]
        command += [f"--config.train.eval_every={updates}", f"--config.checkpoint.every={every}"]
        # A file, not a pipe that nobody reads.
        with (Path(folder) / "told").open("w+") as told:
            process = subprocess.Popen(command, stderr=told)
            samples = _memory(process, workdir)
            if process.returncode:
                told.seek(0)
                raise SystemExit(told.read())
        results = json.loads((workdir / "train_results.json").read_text())
    return {
        "sequences_per_second": results["train_samples_per_second"],
        "training_seconds": _trained(results),
        "saving_seconds": results["train_saving_runtime"],
        "longest_save": results["train_longest_save_runtime"],
        "mib_at_rest": statistics.median(samples),
        "mib_most": max(samples),
    }


def _trained(results: dict[str, float]) -> float:
    """Returns the seconds of the updates themselves, evaluation and compilation apart."""
    sequences = results["train_samples_per_second_overall"] * results["train_runtime"]
    return sequences / results["train_samples_per_second"]


def _memory(process: subprocess.Popen, workdir: Path) -> list[float]:
    """Returns the resident MiB, sampled between saves in the second half of training."""
    samples: list[tuple[float, bool]] = []
    status, checkpoints = Path(f"/proc/{process.pid}/status"), workdir / "checkpoints"
    while process.poll() is None:
        time.sleep(0.2)
        try:
            lines = status.read_text().splitlines()
            resident = next(line for line in lines if line.startswith("VmRSS"))
            training = (workdir / "metrics.jsonl").stat().st_size > 0
        except (OSError, StopIteration):  # not yet there, or gone
            continue
        saving = checkpoints.is_dir() and any(
            path.name.endswith(".tmp") for path in checkpoints.iterdir()
        )
        if training:
            samples.append((int(resident.split()[1]) / 1024, saving))
    rest = [size for size, saving in samples[len(samples) // 2 :] if not saving]
    if not rest:
        raise SystemExit("no sample of memory: raise --updates")
    return rest


if __name__ == "__main__":
    main()
