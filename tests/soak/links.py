"""Peers that stop, pause or are slow, and links that are cut for good or for a while.

    python -m tests.soak.links --cases=20 --output=tests/results/links.json

What is gone must be found: the others end within 30 seconds, with exit code 71. What comes back
within `processes.lost_after` must be survived, and a peer that is only slow must never be taken for
gone or stuck: the run ends as one that nobody touched.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands import ROOT
from tests.hosts.cut import Link
from tests.hosts.several import Several, free_port, started, train
from tests.soak.lost import GRACE, flags_for
from tests.soak.record import Record, command_line, workplace
from tests.soak.resume import compare

LOST, STUCK = 8, 40  # seconds, of every run here
PAUSE = 4.0  # survived
SLOW = 16.0  # also longer than it takes to be lost
_HOOK = str(ROOT / "tests" / "soak" / "phases")


def _stopped(run: Several, link: Link) -> None:
    run.signal(signal.SIGSTOP, [1])
    run.children[0].wait(GRACE + 30)
    run.signal(signal.SIGCONT, [1])  # it finds out for itself


def _paused(run: Several, link: Link) -> None:
    run.signal(signal.SIGSTOP, [1])
    time.sleep(PAUSE)
    run.signal(signal.SIGCONT, [1])


def _cut(run: Several, link: Link) -> None:
    link.cut()


def _cut_and_mended(run: Several, link: Link) -> None:
    link.cut()
    time.sleep(PAUSE)
    link.mend()


def _nothing(run: Several, link: Link) -> None:
    pass


# kind: (what is done, the phase in which process 1 stays, whether it must be found)
KINDS: dict[str, tuple[Callable[[Several, Link], None], str, bool]] = {
    "stopped peer": (_stopped, "", True),
    "paused peer": (_paused, "", False),
    "cut link": (_cut, "", True),
    "link cut for a while": (_cut_and_mended, "", False),
    "slow compilation": (_nothing, "compiling", False),
    "slow disk": (_nothing, "saving", False),
    "slow export": (_nothing, "exporting", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    from tests.inputs import write_reviews, write_tiny_bert

    record = Record(arguments.output, __doc__.splitlines()[0], command_line("links", arguments))
    with workplace() as folder:
        model, files = write_tiny_bert(folder / "model"), write_reviews(folder / "reviews")

        def flags_of(workdir: Path) -> list[str]:
            return flags_for(
                model,
                files,
                workdir,
                train__steps=60,
                train__eval_every=20,
                checkpoint__every=20,
                processes__lost_after=LOST,
                processes__stuck_after=STUCK,
            )

        whole = folder / "whole"
        with started(folder / "whole-logs", 2, 1, train(flags_of(whole))) as run:
            assert run.codes() == [0, 0], run.said()

        def case(name: str) -> dict[str, Any]:
            number, _, kind = name.partition(" ")
            done, phase, found = KINDS[kind]
            chance = random.Random(arguments.seed * 1000 + int(number))
            workdir = folder / f"run-{number}"
            env = {
                "PYTHONPATH": os.pathsep.join([_HOOK, str(ROOT)]),
                "FLAXBERT_TEST_STAY": f"{phase}:{SLOW}:python:{number_of(phase)}",
            }
            port = free_port()
            with contextlib.ExitStack() as stack:
                link = stack.enter_context(Link(port))
                run = stack.enter_context(
                    started(
                        folder / f"logs-{number}",
                        2,
                        1,
                        train(flags_of(workdir)),
                        env=env,
                        ports=[port, link.port],
                    )
                )
                if not phase:
                    run.wait_for("first update after")
                    time.sleep(chance.uniform(0, 1))
                begun = time.monotonic()
                done(run, link)
                codes = run.codes(300)
                seconds = time.monotonic() - begun
                said = run.said()
            problems = []
            if codes != ([71, 71] if found else [0, 0]):
                problems.append(f"exit codes {codes}: {said[-2000:]}")
            elif found and seconds > GRACE:
                problems.append(f"{seconds:.0f} s")
            elif not found:
                problems += compare(whole, workdir)
            return {"codes": codes, "seconds": round(seconds, 1), "problems": problems}

        kinds = list(KINDS)
        record.run([f"{n} {kinds[n % len(kinds)]}" for n in range(arguments.cases)], case)
    cases = record.cases
    record.finish(
        right=not any(case["problems"] for case in cases.values()),
        found=sum(case["codes"] == [71, 71] for case in cases.values()),
        survived=sum(case["codes"] == [0, 0] for case in cases.values()),
        longest_until_found=max(
            (case["seconds"] for case in cases.values() if case["codes"] == [71, 71]), default=0
        ),
    )


def number_of(phase: str) -> int:
    """Returns the process that is slow: the first one alone exports and writes."""
    return 1 if phase == "compiling" else 0


if __name__ == "__main__":
    main()
