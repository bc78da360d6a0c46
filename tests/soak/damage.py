"""Damages checkpoints in every way that a disk, a copy or a hand can, and asks for the newest.

    python -m tests.soak.damage --count=1000 --output=tests/results/damage.json

A workdir with two checkpoints, killed before its third. Each case damages one or both, drawn from
its number alone, and then either asks `Checkpoints` or, every 50th, starts the real command. Right
is: the newest checkpoint that is byte for byte what was saved, or exit 4 if there is none; the
command ends bit-identical to an untouched run. Note: a
case that happens to change nothing (zeroing zeros, swapping equal files) is drawn again, so every
case must be found.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flaxbert.errors import ModelFileError
from flaxbert.storage.checkpoint import Checkpoints
from tests.faults import inject
from tests.faults.inject import Fault
from tests.faults.lab import Lab, copy_tree, digest, log_of
from tests.soak.record import Record, command_line, workplace

OLDER, NEWER = 2, 4


def prepare(lab: Lab, folder: Path) -> Path:
    """Returns a workdir with checkpoints 2 and 4, killed when it began the next."""
    workdir = folder / "two"
    done = lab.faulty(workdir, Fault("kill", path="checkpoints/6.tmp*"), keep=2)
    assert done.code == -signal.SIGKILL and inject.fired(log_of(workdir)), done.err
    return workdir


# --- damages: each changes one checkpoint, `other` is its neighbour -------------------------------


def flip_bit(checkpoint: Path, other: Path, chance: random.Random) -> str:
    path = _file(checkpoint, chance, least=1)
    data = bytearray(path.read_bytes())
    place = chance.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"{_name(path, checkpoint)} bit {place}"


def truncate(checkpoint: Path, other: Path, chance: random.Random) -> str:
    path = _file(checkpoint, chance, least=1)
    size = chance.choice([0, path.stat().st_size - 1, chance.randrange(path.stat().st_size)])
    os.truncate(path, size)
    return f"{_name(path, checkpoint)} to {size} bytes"


def delete(checkpoint: Path, other: Path, chance: random.Random) -> str:
    path = _file(checkpoint, chance)
    path.unlink()
    return _name(path, checkpoint)


def delete_folder(checkpoint: Path, other: Path, chance: random.Random) -> str:
    path = chance.choice(sorted(p for p in checkpoint.rglob("*") if p.is_dir()))
    shutil.rmtree(path)
    return _name(path, checkpoint)


def swap_files(checkpoint: Path, other: Path, chance: random.Random) -> str:
    first, second = _file(checkpoint, chance), _file(checkpoint, chance)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    return f"{_name(first, checkpoint)} and {_name(second, checkpoint)}"


def zero(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """A block that was allocated and never written, as a crash of the machine leaves."""
    path = _file(checkpoint, chance, least=1)
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data)) // 4096 * 4096
    end = len(data) if chance.random() < 0.3 else min(len(data), start + 4096)
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return f"{_name(path, checkpoint)} bytes {start} to {end}"


def append(checkpoint: Path, other: Path, chance: random.Random) -> str:
    path = _file(checkpoint, chance)
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.choice([1, 16, 4096])))
    return _name(path, checkpoint)


def take_from_other(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """A file of the neighbour under the same name, or under any other."""
    path = _file(checkpoint, chance)
    same = other / path.relative_to(checkpoint)
    source = same if same.is_file() and chance.random() < 0.7 else _file(other, chance)
    shutil.copyfile(source, path)
    return f"{_name(path, checkpoint)} from {_name(source, other)}"


def become_other(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """The neighbour whole, under this number."""
    copy_tree(other, checkpoint)
    return ""


def copy_half(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """A copy that stopped: some files whole, one cut, the rest missing."""
    files = _files(checkpoint)
    chance.shuffle(files)
    done = chance.randrange(len(files))
    os.truncate(files[done], files[done].stat().st_size // 2)
    for path in files[done + 1 :]:
        path.unlink()
    if done == len(files) - 1 and not files[done].stat().st_size:
        files[done].unlink()
    return f"{done} of {len(files)} files"


def add_file(checkpoint: Path, other: Path, chance: random.Random) -> str:
    folder = chance.choice([checkpoint, *(p for p in checkpoint.rglob("*") if p.is_dir())])
    name = chance.choice(["stray", ".DS_Store", "d0", "manifest.ocdbt.__lock", "run.json~"])
    (folder / name).write_bytes(chance.randbytes(chance.choice([0, 1, 100])))
    return _name(folder / name, checkpoint)


def link(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """A file replaced by a link to something else; the same bytes elsewhere would be no damage."""
    path = _file(checkpoint, chance)
    path.unlink()
    path.symlink_to(chance.choice([Path("/etc/passwd"), Path("nowhere"), path]))
    return _name(path, checkpoint)


def link_folder(checkpoint: Path, other: Path, chance: random.Random) -> str:
    path = chance.choice(sorted(p for p in checkpoint.rglob("*") if p.is_dir()))
    outside = checkpoint.parent.parent / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    path.rename(outside)
    path.symlink_to(outside)
    return _name(path, checkpoint)


def put_folder(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """A folder where a file should be."""
    path = _file(checkpoint, chance)
    path.unlink()
    path.mkdir()
    return _name(path, checkpoint)


def put_pipe(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """Opening a pipe that nobody writes to would hang."""
    path = _file(checkpoint, chance)
    path.unlink()
    os.mkfifo(path)
    return _name(path, checkpoint)


def edit_json(checkpoint: Path, other: Path, chance: random.Random) -> str:
    """One value of run.json or manifest.json changed, the file still valid JSON."""
    path = checkpoint / chance.choice(["run.json", "manifest.json"])
    values = json.loads(path.read_text())
    places = list(_leaves(values))
    holder, key = chance.choice(places)
    old = holder[key]
    holder[key] = {"a": 1} if old is None else old + 1 if isinstance(old, (int, float)) else None
    path.write_text(json.dumps(values, indent=1, sort_keys=True))
    return f"{path.name} {key}"


def spoil_json(checkpoint: Path, other: Path, chance: random.Random) -> str:
    path = checkpoint / chance.choice(["run.json", "manifest.json"])
    path.write_bytes(chance.choice([b"", b"{", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe"]))
    return path.name


DAMAGES: list[Callable[[Path, Path, random.Random], str]] = [
    *(flip_bit, flip_bit, flip_bit, truncate, truncate, delete, delete_folder, swap_files, zero),
    *(zero, append, take_from_other, take_from_other, become_other, copy_half, add_file, link),
    *(link_folder, put_folder, put_pipe, edit_json, edit_json, spoil_json),
]


def damage(checkpoints: Path, case: int, seed: int) -> tuple[list[int], str]:
    """Damages for certain; returns which checkpoints and a description."""
    kind = DAMAGES[case % len(DAMAGES)]
    before = {step: _look(checkpoints / str(step)) for step in (OLDER, NEWER)}
    for attempt in range(1000):
        chance = random.Random(f"{seed} {case} {attempt}")
        hit = chance.choices([[NEWER], [OLDER], [OLDER, NEWER]], [6, 1, 3])[0]
        if kind is become_other:
            hit = [chance.choice([OLDER, NEWER])]  # both would only exchange them
        said = []
        for step in hit:
            other = checkpoints / str(OLDER + NEWER - step)
            said.append(f"{step}: {kind(checkpoints / str(step), other, chance)}")
        changed = [step for step, look in before.items() if _look(checkpoints / str(step)) != look]
        if changed:  # an attempt may change only one of both
            return changed, f"{kind.__name__} {'; '.join(said)}"
    raise AssertionError(f"case {case} damages nothing")


def judge(checkpoints: Path, pristine: dict[int, str], hit: list[int]) -> list[str]:
    """Asks as a resume does; returns what is wrong with the answer."""
    right = [step for step in (NEWER, OLDER) if step not in hit]
    problems = []
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            step = Checkpoints(checkpoints, keep=2).newest_valid()
        if step is None:
            problems.append("a start from nothing, in silence")
    except ModelFileError as error:
        step = None
        if "no checkpoint is valid" not in str(error):
            problems.append(f"an unclear message: {error}")
    if step != (right[0] if right else None):
        problems.append(f"newest valid is {step}")
    elif right and digest(checkpoints / str(step)) != pristine[step]:
        problems.append(f"checkpoint {step} is not what was saved")
    if NEWER in hit:
        if f"checkpoint {NEWER} is damaged" not in heard.getvalue():
            problems.append("not said aloud")
        if not os.path.lexists(checkpoints / f"damaged-{NEWER}"):
            problems.append("not kept for a look")
    elif heard.getvalue():
        problems.append(f"said: {heard.getvalue()}")
    if hit == [OLDER]:  # the damage waits below the newer one: it must be found when needed
        shutil.rmtree(checkpoints / str(NEWER))
        with contextlib.redirect_stderr(heard), contextlib.suppress(ModelFileError):
            problems.append(f"newest valid is {Checkpoints(checkpoints, keep=2).newest_valid()}")
    return problems


def by_command(lab: Lab, workdir: Path, hit: list[int]) -> list[str]:
    """The real command on a damaged workdir; returns what is wrong."""
    right = [step for step in (NEWER, OLDER) if step not in hit]
    if right:
        return lab.finished(workdir, says=f"after update {right[0]} of")
    done = lab.command(workdir)
    problems = [] if done.code == 4 else [f"exit {done.code}"]
    if "no checkpoint is valid" not in done.err or "Traceback" in done.err:
        problems.append(done.err[-2000:])
    return problems


def run_case(lab: Lab, two: Path, folder: Path, case: int, seed: int, *, command: bool) -> dict:
    place = folder / f"case-{case}"
    shutil.rmtree(place, ignore_errors=True)
    checkpoints = place / "workdir" / "checkpoints"
    copy_tree(
        two if command else two / "checkpoints", checkpoints.parent if command else checkpoints
    )
    pristine = {step: digest(checkpoints / str(step)) for step in (OLDER, NEWER)}
    hit, what = damage(checkpoints, case, seed)
    problems = (
        by_command(lab, place / "workdir", hit) if command else judge(checkpoints, pristine, hit)
    )
    shutil.rmtree(place)
    return {"what": what, "by_command": command, "problems": problems}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file(folder: Path, chance: random.Random, least: int = 0) -> Path:
    return chance.choice([path for path in _files(folder) if path.stat().st_size >= least])


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _look(folder: Path) -> tuple[str, list[int]]:
    """What stands in a folder, kinds of entries included; a pipe is not opened."""
    return digest(folder), [path.lstat().st_mode for path in sorted(folder.rglob("*"))]


def _leaves(values: Any) -> Any:
    entries = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in entries:
        if isinstance(value, (dict, list)) and value:
            yield from _leaves(value)
        else:
            yield values, key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command-every", type=int, default=50, help="by the real command")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with workplace() as folder:
        from tests.inputs import write_reviews, write_tiny_bert

        record = Record(arguments.output, "damaged checkpoints", command_line("damage", arguments))
        lab = Lab(folder, write_tiny_bert(folder / "model"), write_reviews(folder / "reviews"))
        two = prepare(lab, folder)

        def run(name: str) -> dict[str, Any]:
            case = int(name)
            command = case % arguments.command_every == arguments.command_every - 1
            return run_case(lab, two, folder, case, arguments.seed, command=command)

        record.run([str(case) for case in range(arguments.count)], run)
    kinds = Counter(outcome["what"].split(" ")[0] for outcome in record.cases.values())
    found = sum(not outcome["problems"] for outcome in record.cases.values())
    record.finish(
        right=found == len(record.cases) > 0,
        count=len(record.cases),
        found=found,
        by_command=sum(outcome["by_command"] for outcome in record.cases.values()),
        kinds=dict(sorted(kinds.items())),
    )


if __name__ == "__main__":
    main()
