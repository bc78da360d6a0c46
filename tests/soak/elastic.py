"""A run goes on on other devices and processes: every ordered pair of six layouts.

    python -m tests.soak.elastic --output=tests/results/elastic.json

A run of the first layout stands as a kill after its checkpoint at update 10 leaves it; the same
command on the second one goes on from there. The restored state must be the saved one to the last
bit, wherever its parts lie; the losses of the next updates must be those of the run that was not
moved, to 1e-6; and of each epoch every example must be trained on exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.commands import ROOT, final_state
from tests.hosts.several import started, train
from tests.soak.lost import flags_for
from tests.soak.record import Record, command_line, workplace

LAYOUTS = {  # processes, devices of each
    "1 x 1": (1, 1),
    "1 x 2": (1, 2),
    "1 x 4": (1, 4),
    "1 x 8": (1, 8),
    "2 x 4": (2, 4),
    "4 x 2": (4, 2),
}
MOVED, UPDATES, PER_EPOCH, EXAMPLES = 10, 24, 6, 96
MOST = 1e-6  # relative difference of the loss of the next update
_HOOK = str(ROOT / "tests" / "soak" / "witness")


def run(flags: list[str], folder: Path, layout: str, state: dict[str, np.ndarray]) -> Path:
    """Runs the command to its end; returns the folder of what its processes saw."""
    count, devices = LAYOUTS[layout]
    seen = folder / "seen"
    seen.mkdir(parents=True)
    np.savez(seen / "state.npz", **state)
    env = {
        "PYTHONPATH": os.pathsep.join([_HOOK, str(ROOT)]),
        "FLAXBERT_TEST_WITNESS": str(seen),
    }
    with started(folder, count, devices, train(flags), env=env) as processes:
        assert processes.codes(600) == [0] * count, processes.said()
    return seen


def lines(seen: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(seen.glob("*.jsonl")) for line in path.open()]


def examples(seen: Path, first: int, last: int) -> dict[int, list[int]]:
    """Returns {update: ids}, of processes with the same rows once."""
    found: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for line in lines(seen):
        if "ids" in line and first <= line["step"] < last:
            found.setdefault(line["step"], {})[tuple(line["blocks"])] = line["ids"]
    return {step: [i for ids in parts.values() for i in ids] for step, parts in found.items()}


def losses(workdir: Path) -> dict[int, float]:
    values = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return {v["step"]: v["value"] for v in values if (v["split"], v["name"]) == ("train", "loss")}


def interrupted(workdir: Path, target: Path) -> None:
    """Copies a finished run as a kill after its checkpoint at `MOVED` leaves it."""
    shutil.copytree(workdir, target)
    for path in (target / "checkpoints").iterdir():
        if path.name != str(MOVED):
            shutil.rmtree(path)
    for name in ("train_results.json", "eval_results.json", "all_results.json"):
        (target / name).unlink()


def judge(seen: Path, before: Path, workdir: Path, whole: Path) -> dict[str, Any]:
    restored = [line for line in lines(seen) if "restored" in line]
    ids = examples(before, 0, MOVED) | examples(seen, MOVED, UPDATES)
    problems = []
    if not restored or any(line["restored"] or not line["shards"] for line in restored):
        problems.append(f"restored: {restored}")
    if sorted(ids) != list(range(UPDATES)):
        problems.append(f"updates {sorted(ids)}")
    for epoch in range(UPDATES // PER_EPOCH):
        steps = range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH)
        count = Counter(i for step in steps for i in ids.get(step, []))
        if sorted(count) != list(range(EXAMPLES)) or set(count.values()) != {1}:
            problems.append(f"epoch {epoch}: not each example once")
    ours, theirs = losses(workdir), losses(whole)
    difference = abs(ours[MOVED + 1] / theirs[MOVED + 1] - 1)
    if difference > MOST:
        problems.append(f"loss {difference:.1e}")
    last = abs(ours[UPDATES] / theirs[UPDATES] - 1)
    return {"next_loss": difference, "last_loss": last, "problems": problems}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    from tests.inputs import write_reviews, write_tiny_bert

    record = Record(arguments.output, __doc__.splitlines()[0], command_line("elastic", arguments))
    with workplace() as folder:
        model, files = write_tiny_bert(folder / "model"), write_reviews(folder / "reviews")
        pairs = [(a, b) for a in LAYOUTS for b in LAYOUTS if a != b]
        wholes: dict[str, tuple[Path, Path, dict[str, np.ndarray]]] = {}

        def flags_of(workdir: Path) -> list[str]:
            fields = {"train__steps": UPDATES, "checkpoint__every": MOVED, "log__every": 1}
            return flags_for(model, files, workdir, **fields, checkpoint__keep=9)

        def whole(layout: str) -> tuple[Path, Path, dict[str, np.ndarray]]:
            if layout not in wholes:
                place = folder / layout.replace(" ", "")
                seen = run(flags_of(place / "run"), place, layout, {})
                interrupted(place / "run", place / "moved")
                wholes[layout] = place, seen, final_state(place / "moved")
            return wholes[layout]

        def case(name: str) -> dict[str, Any]:
            old, new = name.split(" to ")
            place, before, state = whole(old)
            moved = folder / name.replace(" ", "")
            shutil.copytree(place / "moved", moved / "run")
            # config.json speaks of no workdir: the copy is the run.
            seen = run(flags_of(moved / "run"), moved, new, state)
            outcome = judge(seen, before, moved / "run", place / "run")
            shutil.rmtree(moved)
            return outcome

        record.run([f"{old} to {new}" for old, new in pairs], case)
    outcomes = record.cases.values()
    record.finish(
        right=not any(outcome["problems"] for outcome in outcomes),
        pairs=len(outcomes),
        largest_difference_of_the_next_loss=max(outcome["next_loss"] for outcome in outcomes),
        largest_difference_of_the_last_loss=max(outcome["last_loss"] for outcome in outcomes),
    )


if __name__ == "__main__":
    main()
