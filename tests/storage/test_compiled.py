"""Programs are kept in a folder of the user's alone, and a damaged one costs a compilation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flaxbert.storage import compiled

PROGRAM = """
import json, os, sys
import jax
from flaxbert.storage import compiled
compiled.keep()
print(float(jax.jit(lambda x: x * 2 + 1)(3.0)), compiled.told())
"""


def run(cache: Path, **environment: str) -> tuple[str, str]:
    """Runs a program of two operations in a process of its own; returns what it printed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**inherited, "FLAXBERT_CACHE": str(cache), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout, done.stderr


def test_a_second_start_compiles_nothing(tmp_path):
    first, _ = run(tmp_path)
    assert first.startswith("7.0 ") and "0 kept from before" in first
    assert oct((tmp_path / "compiled").stat().st_mode)[-3:] == "700"
    second, told = run(tmp_path)
    assert second.startswith("7.0 0 programs compiled, ") and not told
    assert "0 kept" not in second


def test_a_program_that_a_kill_cut_short_is_made_anew(tmp_path):
    run(tmp_path)
    entries = list((tmp_path / "compiled").glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    damaged, told = run(tmp_path)
    assert damaged.startswith("7.0 ") and told.count("is damaged: all of them are made anew") == 1
    assert "Traceback" not in told and "UserWarning" not in told
    whole, told = run(tmp_path)
    assert whole.startswith("7.0 0 programs compiled, ") and not told


def test_another_place_by_jax_s_own_variable(tmp_path):
    place = tmp_path / "elsewhere"
    run(tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(place))
    assert list(place.glob("*-cache")) and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["compiled", "."])
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path, place):
    """Nor one whose folder others may write to: they could put another in its place."""
    cache = tmp_path / "cache"
    (cache / "compiled").mkdir(parents=True)
    (cache / place).chmod(0o777)
    out, told = run(cache)
    assert out == "7.0 \n" and f"others may write to {(cache / place).resolve()}" in told
    assert not list((cache / "compiled").iterdir())
    (cache / place).chmod(0o700)
    out, told = run(cache)
    assert not told and list((cache / "compiled").iterdir())


def test_a_disk_that_takes_no_programs_is_told_once(tmp_path, monkeypatch, capsys):
    import warnings

    import jax

    asked = []
    monkeypatch.setattr(warnings, "showwarning", lambda *rest, **named: asked.append(rest))
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.append((name, value)))
    compiled._tell_in_words(tmp_path)
    (tmp_path / "a-cache").write_text("whole")
    for _ in range(3):
        warnings.showwarning(
            "Error writing persistent compilation cache entry for 'f': OSError: [Errno 28] full",
            UserWarning, "compiler.py", 1,
        )  # fmt: skip
    told = capsys.readouterr().err
    assert told.count("are not kept in") == 1 and "[Errno 28] full" in told
    assert asked == [("jax_enable_compilation_cache", False)]
    assert (tmp_path / "a-cache").exists()
    warnings.showwarning("something else", UserWarning, "x.py", 1)
    assert asked[-1][0] == "something else"


def test_the_oldest_programs_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_BYTES", 25)
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    compiled._shrink(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle-cache", "new-cache"]


@pytest.mark.skipif(os.name != "posix", reason="a file in the way of a folder, as POSIX tells it")
def test_a_cache_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "compiled").write_text("")
    out, told = run(tmp_path)
    assert out == "7.0 \n" and "compiled programs are not kept" in told


def test_nothing_is_told_where_nobody_counts(monkeypatch):
    monkeypatch.setattr(compiled, "_counts", type(compiled._counts)())
    assert compiled.told() == ""
