"""SIGKILL at every kind of request of a run in a bucket: the same command ends with the same bits.

`make soak` writes tests/results/bucket.json; tests/slow/test_gcs.py does some of the kills.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.commands import Done, start, train_flags
from tests.gcs_server import BUCKET, GcsServer, failure, gcs_server
from tests.soak.record import Record, command_line, workplace
from tests.soak.resume import compare

URL = f"gs://{BUCKET}/runs/one"
PREFIX = "runs/one/"

# Requests at which the run dies, in the order of a run of six updates with an evaluation and a
# checkpoint every two: kind, object, and how many of those go through first. Each start dies at the
# next of them, before the request is done.
KILLS = [
    ("write", "config.json", 0),
    ("write", "source/facts.json", 0),
    ("write", "metrics.jsonl", 0),
    ("write", "model/tokenizer.json", 0),
    ("write", "model/model.safetensors", 0),
    ("write", "checkpoints/2/state/", 2),
    ("write", "checkpoints/2/run.json", 0),
    ("write", "checkpoints/2/manifest.json", 0),
    ("write", "metrics.jsonl", 1),  # at update 4, whose evaluation waits for checkpoint 2
    ("copy", "model/config.json", 0),
    ("delete", "model/model.safetensors", 0),
    ("write", "model/model.safetensors", 0),
    ("write", "checkpoints/4/state/manifest.ocdbt", 0),
    ("write", "checkpoints/4/manifest.json", 0),
    ("delete", "checkpoints/2/manifest.json", 0),
    ("delete", "checkpoints/2/state/", 1),
    ("write", "train_results.json", 0),
    ("write", "all_results.json", 0),
]


def flags_for(model: Path, files: dict[str, Path], workdir: object, **fields: object) -> list[str]:
    """The flags of a run. The loss on the validation data falls every time."""
    return train_flags(
        model,
        files["train"],
        workdir,  # type: ignore[arg-type]
        data__validation=files["dev"],
        train__eval_every=2,
        train__best_metric="loss",
        train__accumulate=2,
        optim__learning_rate=1e-4,
        checkpoint__every=2,
        checkpoint__keep=1,
        **fields,
    )


def run(server: GcsServer | None, command: str, *arguments: object, timeout=200) -> Done:
    process = start(command, *arguments, env=server.environment if server else {})
    out, err = process.communicate(timeout=timeout)
    assert "Traceback" not in err, err
    return Done(process.returncode, out, err)


def on_disk(server: GcsServer, folder: Path) -> Path:
    """Returns a local copy of the workdir in the bucket."""
    for name, data in server.objects.items():
        if name.startswith(PREFIX):
            path = folder / name.removeprefix(PREFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


def run_and_signal(server: GcsServer, number: int, at, *arguments: object) -> Done:
    """Starts a training and signals it when `at(request)` says so; a kill is before the request."""
    process = start("train", *arguments, env=server.environment)
    sent = []

    def hook(request):
        if not sent and at(request):
            sent.append(request)
            os.kill(process.pid, number)
        return failure(403, "died") if sent and number == signal.SIGKILL else None

    server.on_request = hook
    out, err = process.communicate(timeout=200)
    server.on_request = lambda request: None
    assert sent, f"never came to it:\n{err}"
    return Done(process.returncode, out, err)


def nth(kind: str, name: str, before: int):
    left = [before]

    def at(request) -> bool:
        if request.kind != kind or not request.name.startswith(PREFIX + name):
            return False
        left[0] -= 1
        return left[0] < 0

    return at


def expire(server: GcsServer) -> None:
    """As if the lease of the killed process had run out; that takes a minute, see below."""
    if PREFIX + ".lock" in server.objects:
        server.delete(PREFIX + ".lock")


def killed(
    server: GcsServer,
    flags: list[str],
    whole: Path,
    folder: Path,
    kills: Sequence[tuple[str, str, int]] = KILLS,
) -> dict[str, Any]:
    """Kills the starts of one run in turn, lets the last one end; returns what is wrong then."""
    problems = []
    for kind, name, before in kills:
        done = run_and_signal(server, signal.SIGKILL, nth(kind, name, before), *flags)
        if done.code != -signal.SIGKILL or "WARNING" in done.err:
            problems.append(f"{kind} {name}: exit code {done.code}: {done.err[-1500:]}")
        expire(server)
    done = run(server, "train", *flags)
    if done.code:
        problems.append(f"exit code {done.code}: {done.err[-1500:]}")
    problems += compare(whole, on_disk(server, folder))
    left = {name.removeprefix(PREFIX).split("/")[0] for name in server.objects}
    problems += [name for name in left if name != ".lock" and not _is_of_a_run(name, whole)]
    if "finished" not in run(server, "train", *flags).err:
        problems.append("the finished run is not known as one")
    return {"kills": len(kills), "problems": problems}


def _is_of_a_run(name: str, whole: Path) -> bool:
    return "tfevents" in name or (whole / name).exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    record = Record(arguments.output, __doc__.splitlines()[0], command_line("bucket", arguments))
    with workplace() as folder:
        from tests.inputs import write_reviews, write_tiny_bert

        model, files = write_tiny_bert(folder / "model"), write_reviews(folder / "reviews")
        whole = folder / "whole"
        done = run(None, "train", *flags_for(model, files, whole))
        assert done.code == 0, done.err

        def case(name: str) -> dict[str, Any]:
            with gcs_server() as server:
                return killed(server, flags_for(model, files, URL), whole, folder / name)

        record.run([f"turn-{number}" for number in range(arguments.turns)], case)
    outcomes = record.cases.values()
    record.finish(
        right=not any(outcome["problems"] for outcome in outcomes),
        kills=sum(outcome["kills"] for outcome in outcomes),
    )


if __name__ == "__main__":
    main()
