"""One long run that is killed every minute and started again: nothing may grow but the updates.

    python -m tests.soak.hour --minutes=60 --output=tests/results/hour.json

Samples are taken at the end of each life, just before its SIGKILL. Note: metrics and event files
grow as they should, so the workdir may grow by a little, and the bounds below say by how much; a
leak of one descriptor or one leftover folder per life is over them.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np

from flaxbert.storage.checkpoint import Checkpoints
from tests.commands import start, train_flags
from tests.faults.lab import copy_tree
from tests.soak.record import Record, command_line, workplace

# Growth per life of a minute that is still called flat. A life's memory differs by some megabytes
# with the moment of the kill (a save copies the state); its lines of metrics are some kilobytes.
BOUNDS = {"rss": 4e6, "descriptors": 0.2, "threads": 0.2, "disk": 2e5, "litter": 0.1}


@dataclasses.dataclass(frozen=True)
class Sample:
    """The end of one life: seconds since the first start, committed updates, and sizes."""

    seconds: float
    updates: int
    rss: float
    descriptors: float
    threads: float
    disk: float
    litter: float
    rss_growth: float = 0.0  # within the second half of the life


def judge(samples: list[Sample]) -> list[str]:
    """Returns what grew and should not, and lives that got nowhere."""
    problems = []
    lives = np.arange(len(samples))
    if len(samples) < 3:
        problems.append(f"{len(samples)} lives: what grows is seen from 3 on")
    for name, bound in BOUNDS.items():
        values = [getattr(sample, name) for sample in samples]
        slope = float(np.polyfit(lives, values, 1)[0]) if len(values) > 2 else 0.0
        if slope > bound:
            problems.append(f"{name} grows by {slope:.3g} a life, allowed {bound:.3g}")
    gains = np.diff([sample.updates for sample in samples])
    if (gains <= 0).any():
        problems.append(f"{int((gains <= 0).sum())} lives committed nothing")
    growth = float(np.median([sample.rss_growth for sample in samples]))
    if growth > 16 * BOUNDS["rss"]:
        problems.append(f"a life's memory grows by {growth:.3g} in its second half")
    return problems


def live(flags: list[str], workdir: Path, seconds: float, begun: float) -> Sample:
    """Runs one life, samples it at its end and kills it."""
    process = start("train", *flags)
    drain = threading.Thread(target=process.communicate, daemon=True)
    drain.start()  # an unread pipe would stop the run
    time.sleep(seconds / 2)
    half = _status(process, "VmRSS")
    time.sleep(seconds / 2)
    rss = _status(process, "VmRSS")
    descriptors = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    threads = _status(process, "Threads")
    process.kill()
    drain.join(60)
    assert process.returncode == -signal.SIGKILL, process.returncode
    # A save under way is no litter of an earlier life: only what is older than this one is.
    old = time.time() - seconds
    litter = sum(path.stat().st_mtime < old for path in workdir.rglob("*.tmp"))
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    return Sample(
        seconds=round(time.monotonic() - begun, 1),
        updates=max(saved, default=0),
        rss=1024.0 * rss,
        descriptors=descriptors,
        threads=threads,
        disk=sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file()),
        litter=litter,
        rss_growth=1024.0 * (rss - half),
    )


def _status(process: subprocess.Popen, field: str) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--life", type=float, default=60.0, help="seconds from start to SIGKILL")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with workplace() as folder:
        from tests.inputs import write_reviews, write_tiny_bert

        model = write_tiny_bert(folder / "model")
        files = write_reviews(folder / "reviews")
        workdir = folder / "run"
        flags = train_flags(
            model,
            files["train"],
            workdir,
            data__validation=files["dev"],
            data__row_length=0,  # planned: updates of several shapes
            train__steps=10_000_000,
            train__eval_every=500,
            checkpoint__every=20,
            log__every=100,
        )
        # A life is no case: the run cannot be taken up by another soak, so it begins anew.
        arguments.output.unlink(missing_ok=True)
        record = Record(
            arguments.output, "one run, killed every life", command_line("hour", arguments)
        )
        begun, samples, problems = time.monotonic(), [], []
        while time.monotonic() - begun < 60 * arguments.minutes:
            samples.append(live(flags, workdir, arguments.life, begun))
            image = copy_tree(workdir / "checkpoints", folder / "image")
            valid = Checkpoints(image, keep=2).newest_valid() or 0
            if valid != samples[-1].updates:
                problems.append(f"life {len(samples)}: {samples[-1].updates} stands, {valid} valid")
            record.add(f"life {len(samples)}", dataclasses.asdict(samples[-1]))
        process = start("train", *flags)
        drain = threading.Thread(target=process.communicate, daemon=True)
        drain.start()
        time.sleep(arguments.life)
        process.terminate()
        drain.join(120)
        if process.poll() != 75:
            problems.append(f"SIGTERM at the end: exit {process.returncode}")
    problems = judge(samples) + problems
    record.finish(
        right=not problems,
        kills=len(samples),
        updates=samples[-1].updates,
        bounds=BOUNDS,
        problems=problems,
    )


if __name__ == "__main__":
    main()
