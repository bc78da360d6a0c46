"""Kills a real training run with SIGKILL at random moments and compares what the resume ends with.

    python -m tests.soak.resume --kills=10 --output=tests/results/resume.json

Dropout, accumulation and packing are on. After each kill the same command runs to its end; every
array of the final checkpoint, the exported weights, metrics.jsonl and the results (times apart)
must equal those of a run that nobody touched, bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.commands import final_state, metrics_without_times, start, train_flags

UPDATES = 300
EARLY_SECONDS = 6.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    moment: str
    newest_checkpoint_at_kill: int
    differences: list[str]


def flags_for(model: Path, train: Path, dev: Path, workdir: Path) -> list[str]:
    return train_flags(
        model,
        train,
        workdir,
        data__validation=dev,
        train__steps=UPDATES,
        train__accumulate=2,
        train__eval_every=50,
        checkpoint__every=7,
        log__every=5,
    )


def run_whole(flags: list[str]) -> float:
    """Runs to the end; returns the seconds from the end of compilation on."""
    process = start("train", *flags)
    compiled = _wait_for_compilation(process)
    _, err = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(err)
    return time.monotonic() - compiled


def run_and_kill(flags: list[str], delay: float, *, early: bool) -> bool:
    """Starts, sends SIGKILL `delay` seconds after compilation (`early`: after the start); returns
    False if the run was faster."""
    process = start("train", *flags)
    begun = time.monotonic() if early else _wait_for_compilation(process)
    drain = threading.Thread(target=process.communicate, daemon=True)
    drain.start()  # an unread pipe would stop the run
    time.sleep(max(0.0, begun + delay - time.monotonic()))
    process.kill()
    drain.join(60)
    return process.returncode == -signal.SIGKILL


def compare(expected: Path, actual: Path) -> list[str]:
    """Returns the names of everything that differs between two finished workdirs."""
    different = []
    ours, theirs = final_state(actual), final_state(expected)
    if ours.keys() != theirs.keys():
        different.append("names of the state's arrays")
    different += [
        name
        for name in theirs.keys() & ours.keys()
        if ours[name].dtype != theirs[name].dtype or not np.array_equal(ours[name], theirs[name])
    ]
    weights = Path("model") / "model.safetensors"
    if (expected / weights).read_bytes() != (actual / weights).read_bytes():
        different.append(str(weights))
    if metrics_without_times(expected) != metrics_without_times(actual):
        different.append("metrics.jsonl")
    for name in ("train_results.json", "eval_results.json", "all_results.json"):
        if _results(expected / name) != _results(actual / name):
            different.append(name)
    return sorted(different)


def _results(path: Path) -> dict:
    """Returns a results file without what depends on the clock."""
    values = json.loads(path.read_text())
    return {n: v for n, v in values.items() if "runtime" not in n and "per_second" not in n}


def soak(
    model: Path, train: Path, dev: Path, folder: Path, *, kills: int, seed: int
) -> list[Outcome]:
    """Returns what each kill led to."""
    chance = random.Random(seed)
    whole = folder / "whole"
    duration = run_whole(flags_for(model, train, dev, whole))
    outcomes: list[Outcome] = []
    while len(outcomes) < kills:
        workdir = folder / f"killed-{len(outcomes)}"
        flags = flags_for(model, train, dev, workdir)
        early = len(outcomes) % 5 == 4  # every fifth kill comes while imports and compilation run
        delay = chance.uniform(0, EARLY_SECONDS if early else duration)
        if not run_and_kill(flags, delay, early=early):
            shutil.rmtree(workdir)
            continue
        saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
        run_whole_again(flags)
        moment = f"{delay:.3f} s after {'the start' if early else 'compilation'}"
        outcomes.append(Outcome(moment, max(saved, default=0), compare(whole, workdir)))
        shutil.rmtree(workdir)
    return outcomes


def run_whole_again(flags: list[str]) -> None:
    process = start("train", *flags)
    _, err = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(err)


def _wait_for_compilation(process: subprocess.Popen) -> float:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("compiled "):
            return time.monotonic()
    raise RuntimeError("".join(seen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    from tests.inputs import write_reviews, write_tiny_bert

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_tiny_bert(folder / "model")
        files = write_reviews(folder / "reviews")
        outcomes = soak(
            model,
            files["train"],
            files["dev"],
            folder,
            kills=arguments.kills,
            seed=arguments.seed,
        )
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    record = {
        "what": "SIGKILL at random moments of a run, then the same command to its end",
        "command": f"python -m tests.soak.resume --kills={arguments.kills} --seed={arguments.seed}",
        "updates": UPDATES,
        "kills": len(outcomes),
        "bit_identical": sum(not outcome.differences for outcome in outcomes),
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
        "seconds": round(time.monotonic() - begun),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{record['bit_identical']} of {record['kills']} bit-identical, {record['seconds']} s")


if __name__ == "__main__":
    main()
