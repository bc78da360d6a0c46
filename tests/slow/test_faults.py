"""Faults in the real command's file-system calls; `make soak` does full counts of the same.

Every test asserts from the log that its fault fired.
"""

from __future__ import annotations

import random
import signal
import subprocess

import pytest

from tests.faults import inject, strace
from tests.faults.inject import Fault
from tests.faults.lab import Lab, copy_tree, log_of
from tests.soak import commit, damage, disk, hour

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not inject.supported(), reason="LD_PRELOAD and /proc are Linux"),
]


@pytest.fixture(scope="module")
def lab(tiny_bert, reviews, tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"), tiny_bert, reviews)


def test_the_tools_are_here():
    assert not inject.missing_tool("cc", "strace")


def test_strace_sees_the_same_calls(lab, tmp_path):
    workdir, log, trace = tmp_path / "run", tmp_path / "calls", tmp_path / "trace"
    flags = lab.flags(workdir)
    assert strace.run(flags, library=lab.library, root=workdir, log=log, trace=trace) == 0
    expected, found = strace.seen(trace, workdir), strace.logged(log)
    assert found == expected, (found - expected, expected - found)
    assert {"open", "write", "sync", "rename", "unlink", "mkdir"} <= {kind for kind, _ in found}
    assert found.total() > 300


def test_at_every_call_of_a_run_a_checkpoint_is_valid(lab, tmp_path):
    outcome = commit.look_everywhere(lab, None, tmp_path)
    assert not outcome["problems"]
    assert outcome["looked_at"] > 400 and set(outcome["newest_valid"]) == {"0", "2", "4", "6"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("kill", calls=("rename",), path="model"),
        Fault("kill", calls=("create",), path="checkpoints/4.tmp/manifest.json.tmp"),
    ],
    ids=lambda fault: f"{fault.path}-{fault.at}",
)
def test_a_kill_there_costs_nothing(lab, tmp_path, fault):
    workdir = tmp_path / "run"
    assert lab.faulty(workdir, fault).code == -signal.SIGKILL
    assert len(inject.fired(log_of(workdir))) == 1
    step, problems = lab.standing(copy_tree(workdir, tmp_path / "copy"))
    assert not problems
    assert not lab.finished(workdir, says=f"after update {step} of" if step else "")


def test_a_kill_leaves_what_stood_when_the_call_was_held(lab, tmp_path):
    outcome = commit.kill(lab, None, tmp_path / "run", 200, resume=False)
    assert outcome["call"] and not outcome["problems"]


ARRAYS = "checkpoints/4.tmp/state.orbax-checkpoint-tmp/ocdbt.process_0/d/*"


@pytest.mark.parametrize(
    ("case", "code"),
    [
        (f"ENOSPC from {ARRAYS}", 4),
        (f"EIO once sync {ARRAYS}", 0),
        ("EROFS from metrics.jsonl", 4),
        ("ENOSPC once write events.out.*", 0),
    ],
)
def test_a_failing_disk_is_told_and_costs_nothing(lab, tmp_path, case, code):
    outcome = disk.run_case(lab, tmp_path / "run", case, again=True)
    assert outcome["fired"] and not outcome["problems"]
    assert outcome["exit"] == code


def test_a_limit_on_file_sizes_is_told(lab, tmp_path):
    outcome = disk.run_case(lab, tmp_path / "run", "limit 1048576", again=False)
    assert outcome["exit"] == 4 and not outcome["problems"]
    assert "File too large" in outcome["said"]


def test_a_full_disk_under_the_compile_cache_is_no_error(lab, tmp_path, monkeypatch):
    cache = tmp_path / "compiled"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    log = tmp_path / "calls"
    full = Fault("ENOSPC", times=0, calls=inject.NEED_SPACE, path="?*")
    flags = lab.flags(tmp_path / "run")
    done = inject.run("train", flags, library=lab.library, root=cache, log=log, faults=(full,))
    assert inject.fired(log)
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert not lab.compared(tmp_path / "run")


@pytest.fixture(scope="module")
def two(lab, tmp_path_factory):
    return damage.prepare(lab, tmp_path_factory.mktemp("two"))


def test_every_damage_is_found(lab, two, tmp_path):
    cases = range(2 * len(damage.DAMAGES))
    found = [damage.run_case(lab, two, tmp_path, case, seed=1, command=False) for case in cases]
    assert not [outcome for outcome in found if outcome["problems"]]


def test_a_damage_that_is_not_found_shows(lab, two, tmp_path):
    copy_tree(two / "checkpoints", tmp_path / "checkpoints")
    pristine = {step: "other bytes" for step in (damage.OLDER, damage.NEWER)}
    assert damage.judge(tmp_path / "checkpoints", pristine, [])


@pytest.mark.parametrize("hit", [[damage.NEWER], [damage.OLDER, damage.NEWER]])
def test_the_command_falls_back_or_says_that_it_cannot(lab, two, tmp_path, hit):
    workdir = copy_tree(two, tmp_path / "run")
    for step in hit:
        (workdir / "checkpoints" / str(step) / "run.json").write_text("{}")
    assert not damage.by_command(lab, workdir, hit)


@pytest.mark.parametrize("kind", [damage.link, damage.link_folder, damage.put_pipe])
def test_the_command_falls_back_from_what_is_no_file(lab, two, tmp_path, kind):
    workdir = copy_tree(two, tmp_path / "run")
    older, newer = (workdir / "checkpoints" / str(n) for n in (damage.OLDER, damage.NEWER))
    kind(newer, older, random.Random(0))
    assert not damage.by_command(lab, workdir, [damage.NEWER])


def _life(**slopes: float) -> list[hour.Sample]:
    base = {"rss": 5e8, "descriptors": 20.0, "threads": 30.0, "disk": 2e7, "litter": 0.0}
    return [
        hour.Sample(
            60.0 * minute,
            updates=int(slopes.get("updates", 100.0) * minute),
            **{name: value + slopes.get(name, 0.0) * minute for name, value in base.items()},
        )
        for minute in range(60)
    ]


def test_the_judge_of_the_hour_passes_a_flat_one():
    assert hour.judge(_life()) == []


@pytest.mark.parametrize(
    "leak", [{"rss": 2e7}, {"descriptors": 1}, {"threads": 1}, {"disk": 1e6}, {"updates": 0}]
)
def test_the_judge_of_the_hour_finds_a_leak(leak):
    assert len(hour.judge(_life(**leak))) == 1


def test_a_hang_is_ended(lab, tmp_path):
    hold = Fault("sleep", calls=("mkdir",), seconds=100)
    with pytest.raises(subprocess.TimeoutExpired):
        lab.faulty(tmp_path / "run", hold, timeout=8)
