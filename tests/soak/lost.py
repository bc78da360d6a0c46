"""SIGKILL of one process of a run of two or four, process 0 as often as others.

    python -m tests.soak.lost --kills=40 --output=tests/results/lost.json

The others must be gone within 30 seconds, with exit code 71; the newest valid checkpoint must be at
least the one that stood before; and after a few such kills the same command must end with the bits
of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.commands import train_flags
from tests.hosts.several import started, train
from tests.soak.record import Record, command_line, workplace
from tests.soak.resume import compare, newest_valid

LAYOUTS = {2: 2, 4: 1}  # processes: devices of each
CHAIN = 4  # kills of one workdir before it is compared
UPDATES = 200
GRACE = 30.0


def flags_for(model: Path, files: dict[str, Path], workdir: Path, **fields: object) -> list[str]:
    values: dict[str, object] = {
        "data__validation": files["dev"],
        "train__steps": UPDATES,
        "train__accumulate": 2,
        "train__eval_every": 50,
        "checkpoint__every": 7,
        "log__every": 5,
        "data__row_length": 256,  # one shape to compile
        "mesh__data": -1,
    }
    return train_flags(model, files["train"], workdir, **(values | fields))


def whole(model: Path, files: dict[str, Path], folder: Path, count: int) -> Path:
    """Returns the workdir of a run that nobody touched."""
    workdir = folder / f"whole-{count}"
    finish(flags_for(model, files, workdir), folder / f"whole-{count}-logs", count)
    return workdir


def finish(flags: list[str], folder: Path, count: int) -> None:
    with started(folder, count, LAYOUTS[count], train(flags)) as run:
        assert run.codes(600) == [0] * count, run.said()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    from tests.inputs import write_reviews, write_tiny_bert

    record = Record(arguments.output, __doc__.splitlines()[0], command_line("lost", arguments))
    with workplace() as folder:
        model, files = write_tiny_bert(folder / "model"), write_reviews(folder / "reviews")
        expected = {count: whole(model, files, folder, count) for count in LAYOUTS}

        def chain(case: str) -> dict[str, Any]:
            number, count = int(case.split()[1]), int(case.split()[3])
            chance = random.Random(arguments.seed * 1000 + number)
            workdir = folder / f"killed-{number}"
            flags = flags_for(model, files, workdir)
            kills = [
                _kill(flags, workdir, folder / f"logs-{number}-{turn}", count, chance, turn)
                for turn in range(CHAIN)
            ]
            finish(flags, folder / f"logs-{number}-end", count)
            return {"kills": kills, "differences": compare(expected[count], workdir)}

        counts = list(LAYOUTS)
        cases = [
            f"chain {number} of {counts[number % 2]} processes"
            for number in range(-(-arguments.kills // CHAIN))
        ]
        record.run(cases, chain)
    kills = [kill for outcome in record.cases.values() for kill in outcome["kills"]]
    right = not any(kill["problems"] for kill in kills) and not any(
        outcome["differences"] for outcome in record.cases.values()
    )
    record.finish(
        right=right,
        kills=len(kills),
        of_process_0=sum(kill["victim"] == 0 for kill in kills),
        longest_seconds_to_the_end=max(kill["seconds"] for kill in kills),
        chains_bit_identical=sum(not outcome["differences"] for outcome in record.cases.values()),
    )


def _kill(
    flags: list[str], workdir: Path, logs: Path, count: int, chance: random.Random, turn: int
) -> dict[str, Any]:
    """Kills one process at a random moment; returns how the others ended."""
    victim = (0, count - 1, 1, 0)[turn % 4]
    # One in four while they compile, the others between the first update and the last.
    early = turn == 1
    delay = chance.uniform(0, 4)
    with started(logs, count, LAYOUTS[count], train(flags)) as run:
        run.wait_for("devices: " if early else "first update after")
        time.sleep(delay)
        saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
        if any(child.poll() is not None for child in run.children):
            return {"victim": victim, "seconds": 0.0, "problems": [], "was": "finished before"}
        run.signal(signal.SIGKILL, [victim])
        begun = time.monotonic()
        codes = run.codes(120)
        seconds = time.monotonic() - begun
        said = run.said()
    problems = []
    if codes[victim] != -signal.SIGKILL or {*codes[:victim], *codes[victim + 1 :]} != {71}:
        problems.append(f"exit codes {codes}: {said[-2000:]}")
    if seconds > GRACE:
        problems.append(f"{seconds:.0f} s")
    if newest_valid(workdir, logs) < max(saved, default=0):
        problems.append("a committed checkpoint was lost")
    return {
        "victim": victim,
        "was": "compiling" if early else "training",
        "delay": round(delay, 3),
        "seconds": round(seconds, 2),
        "problems": problems,
    }


if __name__ == "__main__":
    main()
