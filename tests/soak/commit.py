"""Looks at a run at every file-system call that it makes, and kills it there.

    python -m tests.soak.commit --output=tests/results/commit.json

Two runs: one from nothing (start-up, the first commit, one that deletes an older checkpoint, the
last one, the results), one that resumes a killed one (litter, cut-back, two commits). First each of
them is held at every call; what stands at that moment is what a SIGKILL there leaves, and is
checked in a copy. Then real processes get a real SIGKILL, and what they leave must be, byte for
byte, what stood when they were held. Note: a kill at a sync or close leaves what one at the next
other call leaves, so these two are looked at but not killed at.
"""

from __future__ import annotations

import argparse
import shutil
import signal
from pathlib import Path
from typing import Any

from tests.faults import inject
from tests.faults.inject import Fault
from tests.faults.lab import Lab, copy_tree, digest, log_of
from tests.soak.record import Record, command_line, workplace

CHANGING = ("create", "open", "write", "truncate", "rename", "unlink", "mkdir", "rmdir", "lock")
RUNS = ("start", "resume")


def prepare_resume(lab: Lab, folder: Path) -> Path:
    """Returns a workdir killed in the middle of its second commit."""
    workdir = folder / "base"
    if not workdir.exists():
        fault = Fault("kill", at=60, after="checkpoints/4.tmp*")
        done = lab.faulty(workdir, fault)
        assert done.code == -signal.SIGKILL and inject.fired(log_of(workdir)), done.err
    return workdir


def look_everywhere(
    lab: Lab, base: Path | None, folder: Path, *, resume_every: int = 0
) -> dict[str, Any]:
    """Holds a run at every call and checks what stands; returns counts and everything wrong.

    Every `resume_every`-th copy is also resumed to the end afterwards (0 = none).
    """
    workdir = folder / "held"
    shutil.rmtree(workdir, ignore_errors=True)
    if base is not None:
        copy_tree(base, workdir)
    calls, steps, problems, kept = 0, [], [], []

    def ask(number: int) -> bool:
        nonlocal calls
        calls += 1
        image = copy_tree(workdir, folder / "image")
        if resume_every and calls % resume_every == 0:
            kept.append(copy_tree(workdir, folder / f"image-{number}"))
        step, wrong = lab.standing(image)
        if steps and step < steps[-1]:
            wrong.append(f"went back from checkpoint {steps[-1]} to {step}")
        steps.append(step)
        problems.extend(f"call {number}: {what}" for what in wrong)
        return True

    done = lab.faulty(workdir, Fault("ask", times=0), ask=ask)
    if done.code:
        problems.append(f"exit {done.code}: {done.err[-2000:]}")
    for image in kept:
        problems += [f"resume of {image.name}: {what}" for what in lab.finished(image)]
        shutil.rmtree(image)
    made = [call.name for call in inject.read_log(log_of(workdir))]
    return {
        "calls": {name: made.count(name) for name in sorted(set(made))},
        "looked_at": calls,
        "newest_valid": {str(step): steps.count(step) for step in sorted(set(steps))},
        "resumed_in_full": len(kept),
        "problems": problems,
    }


def kill(lab: Lab, base: Path | None, workdir: Path, at: int, *, resume: bool) -> dict[str, Any]:
    """Sends SIGKILL at the at-th changing call, checks what stands, and perhaps goes on."""
    shutil.rmtree(workdir, ignore_errors=True)
    if base is not None:
        copy_tree(base, workdir)
    before = ""

    def ask(number: int) -> bool:
        nonlocal before
        before = digest(workdir) if workdir.exists() else ""
        return False

    done = lab.faulty(workdir, Fault("ask", at=at, calls=CHANGING), ask=ask)
    hit = inject.fired(log_of(workdir))
    if not hit:  # the number of calls varies a little with Orbax's threads
        problems = [] if done.code == 0 else [f"exit {done.code}: {done.err[-2000:]}"]
        return {"call": "", "problems": problems}
    problems = [] if done.code == -signal.SIGKILL else [f"exit {done.code}"]
    if (digest(workdir) if workdir.exists() else "") != before:
        problems.append("the kill left something else than stood when the call was held")
    image = copy_tree(workdir, workdir.with_name(workdir.name + "-image"))
    step, wrong = lab.standing(image)
    problems += wrong
    if resume:
        problems += lab.finished(workdir)
    shutil.rmtree(image, ignore_errors=True)
    shutil.rmtree(workdir, ignore_errors=True)
    call = f"{hit[0].name} {hit[0].path}"
    return {"call": call, "newest_valid": step, "resumed": resume, "problems": problems}


def count_changing(log: Path) -> int:
    return sum(call.name in CHANGING for call in inject.read_log(log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume-every", type=int, default=20, help="copies and kills resumed")
    parser.add_argument("--start-every", type=int, default=3, help="kills of the run from nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with workplace() as folder:
        from tests.inputs import write_reviews, write_tiny_bert

        command = command_line("commit", arguments)
        record = Record(
            arguments.output, "every file-system call of a run and of a resume", command
        )
        lab = Lab(folder, write_tiny_bert(folder / "model"), write_reviews(folder / "reviews"))
        bases = {"start": None, "resume": prepare_resume(lab, folder)}
        total = {}
        for name in RUNS:
            place = folder / f"look-{name}"
            place.mkdir()
            every = arguments.resume_every
            outcome = look_everywhere(lab, bases[name], place, resume_every=every)
            total[name] = count_changing(log_of(place / "held"))
            record.add(f"look {name}", outcome)
            shutil.rmtree(place)
            print(f"look {name}: {outcome['looked_at']} calls, {outcome['problems']}", flush=True)

        def case(name: str) -> dict[str, Any]:
            _, run, at = name.split()
            resume = int(at) % arguments.resume_every == 0
            workdir = folder / name.replace(" ", "-")
            return kill(lab, bases[run], workdir, int(at), resume=resume)

        kills = [f"kill resume {at}" for at in range(1, total["resume"] + 1)]
        kills += [f"kill start {at}" for at in range(1, total["start"] + 1, arguments.start_every)]
        record.run(kills, case, jobs=arguments.jobs)
    killed = [outcome for name, outcome in record.cases.items() if outcome.get("call")]
    looked = [outcome for name, outcome in record.cases.items() if name.startswith("look")]
    problems = sum(len(outcome["problems"]) for outcome in record.cases.values())
    record.finish(
        # Orbax's threads make a few calls more or fewer, so some of the last kills find none.
        right=not problems and len(killed) > 0.9 * len(kills),
        looked_at=sum(outcome["looked_at"] for outcome in looked),
        kills=len(killed),
        resumed_in_full=sum(outcome["resumed"] for outcome in killed)
        + sum(outcome["resumed_in_full"] for outcome in looked),
        problems=problems,
    )


if __name__ == "__main__":
    main()
