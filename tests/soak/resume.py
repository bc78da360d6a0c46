"""Kills a real training run with SIGKILL at random moments and compares what it ends with.

    python -m tests.soak.resume --kills=100 --output=tests/results/resume.json

Dropout, accumulation and packing are on. One workdir is killed several times in a row, then the
same command runs to its end; every array of the final checkpoint, the exported weights,
metrics.jsonl and the results (times apart) must equal those of a run that nobody touched, bit for
bit. After each kill the newest valid checkpoint must be at least the newest that stood before it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flaxbert.storage.checkpoint import Checkpoints
from tests.commands import final_state, metrics_without_times, start, train_flags
from tests.soak.record import Record, command_line, workplace

UPDATES = 300
EARLY_SECONDS = 6.0
CHAIN = 5  # kills of one workdir before it is compared


@dataclasses.dataclass(frozen=True)
class Outcome:
    moment: str
    newest_checkpoint_at_kill: int
    committed_steps_lost: int
    differences: list[str]  # of the end of its workdir


def flags_for(model: Path, train: Path, dev: Path, workdir: Path) -> list[str]:
    return train_flags(
        model,
        train,
        workdir,
        data__validation=dev,
        data__row_length=0,  # planned: updates of several shapes
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


def run_and_kill(flags: list[str], workdir: Path, delay: float, *, early: bool) -> int | None:
    """Starts, sends SIGKILL `delay` seconds after compilation (`early`: after the start).

    Returns the newest checkpoint that stood just before; None if the run was faster.
    """
    process = start("train", *flags)
    begun = time.monotonic() if early else _wait_for_compilation(process)
    drain = threading.Thread(target=process.communicate, daemon=True)
    drain.start()  # an unread pipe would stop the run
    time.sleep(max(0.0, begun + delay - time.monotonic()))
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    process.kill()
    drain.join(60)
    return max(saved, default=0) if process.returncode == -signal.SIGKILL else None


def newest_valid(workdir: Path, folder: Path) -> int:
    """Returns the newest valid checkpoint of a copy; asking changes what it looks at."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    copy = folder / "copy"
    shutil.copytree(workdir / "checkpoints", copy)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        step = Checkpoints(copy, keep=2).newest_valid() or 0
    shutil.rmtree(copy)
    if said.getvalue():
        raise AssertionError(said.getvalue())  # a kill damages nothing
    return step


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
    outcomes = []
    for chain in chains(model, train, dev, folder, kills=kills, seed=seed):
        outcomes += chain
    return outcomes


def chains(
    model: Path, train: Path, dev: Path, folder: Path, *, kills: int, seed: int, first: int = 0
) -> Iterator[list[Outcome]]:
    """Yields what the kills of one workdir after the other led to, from number `first` on."""
    whole = folder / "whole"
    duration = run_whole(flags_for(model, train, dev, whole))
    while kills > 0:
        workdir = folder / f"killed-{first}"
        flags = flags_for(model, train, dev, workdir)
        chance = random.Random(f"{seed} {first}")
        killed: list[tuple[str, int, int]] = []
        while len(killed) < min(CHAIN, kills):
            early = chance.random() < 0.2  # some come while imports and compilation run
            # Together the delays are about the run, so that the chain reaches its end.
            delay = chance.uniform(0, EARLY_SECONDS if early else 2 * duration / CHAIN)
            before = run_and_kill(flags, workdir, delay, early=early)
            if before is None:
                break
            found = newest_valid(workdir, folder)
            moment = f"{delay:.3f} s after {'the start' if early else 'compilation'}"
            killed.append((moment, found, max(0, before - found)))
        if killed:
            run_whole_again(flags)
            differences = compare(whole, workdir)
            yield [Outcome(*kill, differences) for kill in killed]
        kills -= len(killed)
        first += 1
        shutil.rmtree(workdir, ignore_errors=True)


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
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with workplace() as folder:
        from tests.inputs import write_reviews, write_tiny_bert

        what = "SIGKILL at random moments of a run, then the same command to its end"
        record = Record(arguments.output, what, command_line("resume", arguments))
        model = write_tiny_bert(folder / "model")
        files = write_reviews(folder / "reviews")
        done = sum(len(chain["kills"]) for chain in record.cases.values())
        left = arguments.kills - done
        first = len(record.cases)
        paths = (model, files["train"], files["dev"], folder)
        for chain in chains(*paths, kills=left, seed=arguments.seed, first=first):
            kills = [dataclasses.asdict(outcome) for outcome in chain]
            record.add(f"chain {len(record.cases)}", {"kills": kills})
    kills = [kill for chain in record.cases.values() for kill in chain["kills"]]
    lost = sum(kill["committed_steps_lost"] for kill in kills)
    identical = sum(not kill["differences"] for kill in kills)
    record.finish(
        right=lost == 0 and identical == len(kills) >= arguments.kills,
        updates=UPDATES,
        kills=len(kills),
        committed_steps_lost=lost,
        bit_identical=identical,
    )


if __name__ == "__main__":
    main()
