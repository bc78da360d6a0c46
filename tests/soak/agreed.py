"""SIGTERM to one process of a run of two or four, or to all, in every phase.

    python -m tests.soak.agreed --signals=40 --output=tests/results/agreed.json

All processes must end with exit code 75 and the same saved update, no finished one lost, and the
same command must then end with the bits of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from tests.commands import ROOT
from tests.hosts.several import started, train
from tests.soak.lost import GRACE, LAYOUTS, finish, flags_for
from tests.soak.record import Record, command_line, workplace
from tests.soak.resume import compare

UPDATES = 24
# "preparing" is over before a process that does not prepare has begun: it is hit by time.
PHASES = (
    "preparing",
    "compiling",
    "first update",
    "training",
    "evaluating",
    "exporting",
    "saving",
    "writing results",
    "resuming",
    "training",
)
_HOOK = str(ROOT / "tests" / "soak" / "phases")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    from tests.inputs import write_reviews, write_tiny_bert

    record = Record(arguments.output, __doc__.splitlines()[0], command_line("agreed", arguments))
    with workplace() as folder:
        model, files = write_tiny_bert(folder / "model"), write_reviews(folder / "reviews")

        def flags_of(workdir: Path) -> list[str]:
            return flags_for(
                model,
                files,
                workdir,
                train__steps=UPDATES,
                train__eval_every=6,
                checkpoint__every=8,
            )

        expected = {}
        for count in LAYOUTS:
            expected[count] = folder / f"whole-{count}"
            finish(flags_of(expected[count]), folder / f"whole-{count}-logs", count)

        def case(name: str) -> dict[str, Any]:
            number = int(name.split()[0])
            phase = PHASES[number % len(PHASES)]
            count = 2 if number % 2 == number // 20 % 2 else 4
            chance = random.Random(arguments.seed * 1000 + number)
            victim = chance.randrange(count)
            asked = list(range(count)) if number // 10 % 2 else [victim]
            workdir = folder / f"asked-{number}"
            flags = flags_of(workdir)
            if phase == "resuming":
                _ask(flags, workdir, folder / f"before-{number}", count, "evaluating", 0.1, [0], 0)
            outcome = _ask(
                flags,
                workdir,
                folder / f"logs-{number}",
                count,
                phase,
                chance.uniform(0, 0.5),
                asked,
                victim,
            )
            finish(flags, folder / f"logs-{number}-end", count)
            return outcome | {"differences": compare(expected[count], workdir)}

        record.run([f"{n} {PHASES[n % len(PHASES)]}" for n in range(arguments.signals)], case)
    outcomes = record.cases.values()
    record.finish(
        right=not any(o["problems"] or o["differences"] for o in outcomes),
        signals=len(outcomes),
        missed=sum(set(o["codes"]) != {75} for o in outcomes),
        most_updates_lost=max(o["finished"] - o["saved"] for o in outcomes),
        longest_seconds_to_the_end=max(o["seconds"] for o in outcomes),
        bit_identical=sum(not o["differences"] for o in outcomes),
    )


def _ask(
    flags: list[str],
    workdir: Path,
    logs: Path,
    count: int,
    phase: str,
    delay: float,
    asked: list[int],
    victim: int,
) -> dict[str, Any]:
    """Asks processes to stop in a phase; returns how all ended."""
    env = {
        "PYTHONPATH": os.pathsep.join([_HOOK, str(ROOT)]),
        "FLAXBERT_TEST_STAY": f"{phase}:{delay + 1}:python:{victim}",
    }
    # Only the first process of a machine prepares, and only the first of all resumes a model.
    teller = 0 if phase == "preparing" else victim
    with started(logs, count, LAYOUTS[count], train(flags), env=env) as run:
        run.wait_for(f"phase: {phase}", process=teller)
        time.sleep(delay)
        run.signal(signal.SIGTERM, asked)
        begun = time.monotonic()
        codes = run.codes(120)
        seconds = time.monotonic() - begun
        texts = [run.text(index) for index in range(count)]
    before = texts[victim].partition("flaxbert: ")[0]
    entered = re.findall(r"^phase: .* (\d+)$", before, re.M)
    finished = max(map(int, entered), default=0)
    checkpoints = workdir / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    problems = []
    if set(codes) != {75}:
        problems.append(f"exit codes {codes}: {texts[0][-1500:]} | {texts[victim][-1500:]}")
    if seconds > GRACE:
        problems.append(f"{seconds:.0f} s")
    if saved < finished:
        problems.append(f"{finished - saved} finished updates lost")
    if any("Traceback" in text for text in texts):
        problems.append("a traceback")
    return {
        "phase": phase,
        "processes": count,
        "asked": asked,
        "delay": round(delay, 3),
        "codes": codes,
        "seconds": round(seconds, 2),
        "finished": finished,
        "saved": saved,
        "problems": problems,
    }


if __name__ == "__main__":
    main()
