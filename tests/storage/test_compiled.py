"""Programs are kept in a folder of the user's alone, and a damaged one costs a compilation."""

from __future__ import annotations

import json
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
    assert damaged.startswith("7.0 ") and told.count("is damaged: all of them are made anew") >= 1
    assert "Traceback" not in told and "UserWarning" not in told
    whole, told = run(tmp_path)
    assert whole.startswith("7.0 0 programs compiled, ") and not told


def test_another_place_by_jax_s_own_variable(tmp_path):
    place = tmp_path / "elsewhere"
    run(tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(place))
    assert list(place.glob("*-cache")) and not (tmp_path / "cache").exists()


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path):
    (tmp_path / "compiled").mkdir(mode=0o777)
    (tmp_path / "compiled").chmod(0o777)
    out, told = run(tmp_path)
    assert out == "7.0 \n" and "is not yours alone" in told
    assert not list((tmp_path / "compiled").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="a file in the way of a folder, as POSIX tells it")
def test_a_cache_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "compiled").write_text("")
    out, told = run(tmp_path)
    assert out == "7.0 \n" and "compiled programs are not kept" in told


def test_nothing_is_told_where_nobody_counts(monkeypatch):
    monkeypatch.setattr(compiled, "_counts", type(compiled._counts)())
    assert compiled.told() == ""
    assert json.dumps(compiled._EVENTS)
