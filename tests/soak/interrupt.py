"""SIGTERM and SIGINT in every phase of a real training run, and what the same command ends with.

    python -m tests.soak.interrupt --signals=40 --output=tests/results/interrupt.json

A run tells its phases by tests/soak/phases. Each case asserts the phase that was hit, exit code 75,
no traceback, that no finished update is lost, and that the same command then ends with the bits
of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from tests.commands import ROOT, start, train_flags
from tests.soak.record import machine, versions, workplace
from tests.soak.resume import compare, run_whole_again

UPDATES = 24
PHASES = (
    "importing",
    "preparing",
    "compiling",
    "first update",
    "training",
    "evaluating",
    "exporting",
    "saving",
    "writing results",
    "resuming",
)
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_HOOK = str(ROOT / "tests" / "soak" / "phases")
_GRACE = 30.0  # seconds that clusters and spot machines give


@dataclasses.dataclass(frozen=True)
class Outcome:
    phase: str
    signal: str
    delay: float  # seconds after the phase began (importing: after the process did)
    inside_c: bool
    hit: str  # the phase that the command was in when it told of the signal
    code: int
    seconds: float  # from the signal to the end
    finished: int  # updates before the signal was noticed
    saved: int
    problems: list[str]


def flags_for(model: Path, files: dict[str, Path], workdir: Path) -> list[str]:
    return train_flags(
        model,
        files["train"],
        workdir,
        data__validation=files["dev"],
        train__steps=UPDATES,
        train__accumulate=2,
        train__eval_every=6,
        checkpoint__every=8,
        log__every=5,
    )


def interrupt(
    flags: list[str], phase: str, number: int, delay: float, *, inside_c: bool = False
) -> tuple[int, float, str]:
    """Signals the command `delay` seconds into a phase; returns code, seconds to the end, stderr.

    The signal goes to the whole process group, as Ctrl-C does.
    """
    how = "c" if inside_c else "python"
    process = start(
        "train",
        *flags,
        env={
            "PYTHONPATH": os.pathsep.join([_HOOK, str(ROOT)]),
            "FLAXBERT_TEST_STAY": f"{phase}:{delay + 1}:{how}",
        },
        start_new_session=True,
    )
    began, lines = threading.Event(), []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith(f"phase: {phase}"):
                began.set()
        began.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    if phase != "importing":
        began.wait(240)
    time.sleep(delay)
    sent = time.monotonic()
    os.killpg(process.pid, number)
    try:
        code = process.wait(240)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    listener.join(60)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return code, time.monotonic() - sent, "".join(lines)


def judge(phase: str, code: int, seconds: float, told: str, workdir: Path) -> tuple:
    """Returns (phase hit, finished updates, saved update, problems) of an interrupted command."""
    before = told.partition("flaxbert: stop")[0]
    entered = re.findall(r"^phase: (.*?)(?: (\d+))?$", before, re.MULTILINE)
    hit = entered[-1][0] if entered else "importing"
    finished = max((int(step) for _, step in entered if step), default=0)
    checkpoints = workdir / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    problems = []
    if hit != phase:
        problems.append(f"hit {hit}")
    if code != 75:
        problems.append(f"exit code {code}")
    if seconds > _GRACE:
        problems.append(f"{seconds:.0f} s")
    if "Traceback" in told or told.count("flaxbert: stopped by a signal") != 1:
        problems.append("told otherwise")
    if saved < finished:
        problems.append(f"{finished - saved} finished updates lost")
    return hit, finished, saved, problems


def soak(
    model: Path, files: dict[str, Path], folder: Path, cases: list[tuple[str, int]], seed: int
) -> list[Outcome]:
    """Returns what each (phase, signal) led to."""
    chance = random.Random(seed)
    whole = folder / "whole"
    run_whole_again(flags_for(model, files, whole))
    outcomes = []
    for index, (phase, number) in enumerate(cases):
        workdir = folder / f"interrupted-{index}"
        flags = flags_for(model, files, workdir)
        # Imports take a second or two; a quarter of the other signals finds one call of C code.
        delay = chance.uniform(0.1, 0.8) if phase == "importing" else chance.uniform(0, 0.5)
        inside_c = phase in ("preparing", "compiling", "resuming") and index % 4 < 2
        if phase == "resuming":
            assert interrupt(flags, "evaluating", number, 0.1)[0] == 75
        code, seconds, told = interrupt(flags, phase, number, delay, inside_c=inside_c)
        hit, finished, saved, problems = judge(phase, code, seconds, told, workdir)
        run_whole_again(flags)
        problems += compare(whole, workdir)
        name = signal.Signals(number).name
        outcomes.append(
            Outcome(
                phase,
                name,
                round(delay, 3),
                inside_c,
                hit,
                code,
                round(seconds, 2),
                finished,
                saved,
                problems,
            )
        )
        shutil.rmtree(workdir)
    return outcomes


def every_phase(count: int) -> list[tuple[str, int]]:
    """Returns `count` cases: phases in turn, both signals for each."""
    return [
        (PHASES[index % len(PHASES)], SIGNALS[(index // len(PHASES)) % 2]) for index in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    from tests.inputs import write_reviews, write_tiny_bert

    begun = time.monotonic()
    with workplace() as folder:
        model, files = write_tiny_bert(folder / "model"), write_reviews(folder / "reviews")
        outcomes = soak(model, files, folder, every_phase(arguments.signals), arguments.seed)
    record = {
        "what": "SIGTERM or SIGINT in every phase of a run, then the same command to its end",
        "command": f"python -m tests.soak.interrupt --signals={arguments.signals} "
        f"--seed={arguments.seed}",
        "updates": UPDATES,
        "signals": len(outcomes),
        "missed": sum(outcome.code != 75 for outcome in outcomes),
        "most_updates_lost": max(max(0, o.finished - o.saved) for o in outcomes),
        "bit_identical_and_as_told": sum(not outcome.problems for outcome in outcomes),
        "longest_seconds_to_the_end": max(outcome.seconds for outcome in outcomes),
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - begun),
        "python": platform.python_version(),
        "versions": versions(),
        "machine": machine(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"{record['bit_identical_and_as_told']} of {record['signals']} as they should be, "
        f"{record['seconds']} s"
    )
    raise SystemExit(0 if record["bit_identical_and_as_told"] == arguments.signals else 1)


if __name__ == "__main__":
    main()
