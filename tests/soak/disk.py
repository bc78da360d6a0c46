"""Lets the disk of a run fail: full, over quota, read-only, broken, once or for good, slow, short.

    python -m tests.soak.disk --output=tests/results/disk.json

The calls of an untouched run are sorted by kind and file (names drawn at random are one file; the
first commit and a later one are told apart). Each of them fails once with each error, and each file
is also where the disk begins to fail for good. Right is exit 0 with a result that is bit-identical,
or an exit with code 4 and a message that names file and reason, all committed checkpoints intact;
never a hang, a traceback or silence. The same command then ends bit-identical. Note: a full disk
still removes and renames, so a fault fails only the calls that it would.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.commands import Done
from tests.faults import inject
from tests.faults.inject import NEED_SPACE, NEED_WRITING, Call, Fault
from tests.faults.lab import Lab, log_of
from tests.soak.record import Record, command_line, workplace

ONCE = ("EIO", "ENOSPC", "EROFS", "EDQUOT")
# A broken disk fails to sync and to close as well.
FOR_GOOD = {
    "EIO": (*NEED_WRITING, "close"),
    "ENOSPC": NEED_SPACE,
    "EROFS": NEED_WRITING,
    "EDQUOT": NEED_SPACE,
}
HANG_SECONDS = 180.0


def shape(path: str) -> str:
    """Returns the pattern of a path: what is drawn at random or counts seconds is "*"."""
    path = re.sub(r"\b[0-9a-f]{32}\b", "*", path)
    return re.sub(r"events\.out\..*", "events.out.*", path)


def calls_of(lab: Lab, folder: Path) -> list[Call]:
    """Returns the calls of an untouched run but the last commit's, which are the second's."""
    workdir = folder / "calls"
    done = lab.faulty(workdir)
    assert done.code == 0, done.err
    calls = inject.read_log(log_of(workdir))
    shutil.rmtree(workdir)
    return [call for call in calls if not call.path.startswith("checkpoints/6")]


def cases_for(calls: Iterable[Call]) -> list[str]:
    """Returns the names of all cases: "EIO once write PATTERN", "ENOSPC from PATTERN", ..."""
    calls = [call for call in calls if call.path != "."]  # the folder itself is no file
    kinds = sorted({(call.name, shape(call.path)) for call in calls if call.name != "lock"})
    # The same file comes again when a checkpoint is deleted; from there on is another case.
    files = sorted({shape(call.path) for call in calls if call.name in NEED_SPACE})
    names = [f"{error} once {kind} {path}" for error in ONCE for kind, path in kinds]
    names += [f"{error} from {path}" for error in FOR_GOOD for path in files]
    names += [f"slow {kind} {path}" for kind, path in kinds if kind in ("write", "sync", "rename")]
    return [*names, "short all", "limit 1048576", "limit 65536", "limit 2048"]


def fault_for(case: str) -> Fault | None:
    """Returns the fault of a case; None for a limit on file sizes, which the kernel keeps."""
    error, *rest = case.split(" ")
    if error == "limit":
        return None
    if error == "short":
        return Fault("short", times=0, calls=("write",))
    if error == "slow":
        return Fault("sleep", calls=(rest[0],), path=rest[1], seconds=3.0)
    if rest[0] == "once":
        return Fault(error, calls=(rest[1],), path=rest[2])
    return Fault(error, times=0, calls=FOR_GOOD[error], after=rest[1])


def run_case(lab: Lab, workdir: Path, case: str, *, again: bool) -> dict[str, Any]:
    """Runs the command under the fault and judges how it ended and what stands.

    With `again` the same command runs once more without the fault and must end bit-identical.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    fault = fault_for(case)
    options: dict[str, Any] = {"timeout": HANG_SECONDS}
    if fault is None:
        options["file_size"] = int(case.split(" ")[1])
    try:
        done = lab.faulty(workdir, *([fault] if fault else []), **options)
    except subprocess.TimeoutExpired:
        return {"exit": None, "fired": "", "problems": ["hang"]}
    calls = inject.read_log(log_of(workdir))
    hits = [call for call in calls if call.fired]
    if fault is not None and not hits:
        # Some files are named by chance, and some writes of a thread come together by chance.
        problems = [f"exit {done.code} without a fault"] if done.code else lab.compared(workdir)
        return {"exit": done.code, "fired": "", "problems": problems}
    outcome: dict[str, Any] = {"exit": done.code, "fired": ""}
    if hits:
        outcome["fired"] = f"{len(hits)} calls from {hits[0].name} {hits[0].path}"
    elif done.code:  # a limit of the kernel, which no log shows: it was met if the run says so
        outcome["fired"] = case
    if done.code == 0:
        problems = lab.compared(workdir)
    else:
        # A limit holds for temporary files too, whose folder stands beside the workdir.
        problems = judge_failure(done, workdir if fault else workdir.parent)
        outcome["said"] = _last_line(done.err)
        committed = committed_before(calls)
        step, wrong = lab.standing(workdir) if workdir.exists() else (0, [])
        problems += wrong
        if step < committed:
            problems.append(f"checkpoint {committed} had been committed, {step} stands")
        if again:
            problems += lab.finished(workdir)
    if case.startswith(("short", "slow")) and done.code:
        problems.append("a slow or hesitant disk is no error")
    shutil.rmtree(workdir, ignore_errors=True)
    return outcome | {"again": again and done.code != 0, "problems": problems}


def judge_failure(done: Done, folder: Path) -> list[str]:
    """Returns what is wrong with how a failure of a file in the folder was told."""
    said = [line for line in done.err.splitlines() if line.startswith("flaxbert: error")]
    problems = []
    # A workdir that cannot even be opened is a wrong --workdir.
    right = 2 if any("--workdir: cannot use" in line for line in said) else 4
    if done.code != right:
        problems.append(f"exit {done.code}")
    if "Traceback" in done.err:
        problems.append(f"a traceback: {done.err[-3000:]}")
    reasons = [os.strerror(getattr(inject.errno, name)) for name in (*ONCE, "EFBIG")]
    if not any(reason in line for line in said for reason in reasons):
        problems.append(f"no reason: {said or done.err[-500:]}")
    if not any(str(folder) in line for line in said):
        problems.append(f"no file: {said or done.err[-500:]}")
    return problems


def committed_before(calls: list[Call]) -> int:
    """Returns the newest checkpoint that was renamed into place before anything failed."""
    newest = 0
    for call in calls:
        if call.fired:
            break
        found = re.fullmatch(r"checkpoints/(\d+)", call.other)
        if call.name == "rename" and found:
            newest = int(found[1])
    return newest


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="cases drawn by the seed; 0 = all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again-every", type=int, default=5, help="failures that are repeated")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with workplace() as folder:
        from tests.inputs import write_reviews, write_tiny_bert

        record = Record(arguments.output, "a failing disk", command_line("disk", arguments))
        lab = Lab(folder, write_tiny_bert(folder / "model"), write_reviews(folder / "reviews"))
        cases = cases_for(calls_of(lab, folder))
        possible = len(cases)
        random.Random(arguments.seed).shuffle(cases)
        if arguments.count:
            cases = cases[: arguments.count]
        numbers = {case: number for number, case in enumerate(cases)}

        def run(case: str) -> dict[str, Any]:
            number = numbers[case]
            again = number % arguments.again_every == 0
            outcome = run_case(lab, folder / f"case-{number}", case, again=again)
            if outcome["problems"]:
                print(case, outcome, flush=True)
            return outcome

        record.run(cases, run, jobs=arguments.jobs)
    outcomes = record.cases.values()
    fired = sum(bool(outcome["fired"]) for outcome in outcomes)
    problems = sum(bool(outcome["problems"]) for outcome in outcomes)
    record.finish(
        # What is named by chance may not come again; were that most, nothing would be tested.
        right=not problems and fired > 0.5 * len(outcomes),
        possible=possible,
        count=len(outcomes),
        fired=fired,
        exits={str(code): n for code, n in Counter(o["exit"] for o in outcomes).items()},
        repeated=sum(bool(o.get("again")) for o in outcomes),
        problems=problems,
    )


if __name__ == "__main__":
    main()
