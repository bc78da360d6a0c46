"""What an update needs is what the compiler says; the limit is the device's, not the moment's."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import pytest

from flaxbert.loop import memory
from flaxbert.loop.memory import Fit


def device(platform: str, stats: dict | None):
    return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)


def test_a_program_needs_arguments_results_and_temporaries():
    size = 4 * 2**20
    shape = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(shape).compile()
    kept = jax.jit(lambda x: x + 1).lower(shape).compile()
    assert memory.needed_by(donated) == pytest.approx(size, rel=0.01)
    assert memory.needed_by(kept) == pytest.approx(2 * size, rel=0.01)


def test_the_limit_is_a_share_of_what_the_device_has(monkeypatch):
    gpu = device("gpu", {"bytes_limit": 1000, "bytes_in_use": 900})
    assert memory.limit_of(gpu) == 920
    assert memory.limit_of(device("tpu", None)) == 0
    monkeypatch.setattr(memory, "_host_memory", lambda: 8000)
    devices = jax.local_device_count()
    assert memory.limit_of(device("cpu", None)) == int(0.7 * 8000 / devices)


def test_a_container_may_have_less_than_the_machine(monkeypatch, tmp_path):
    whole = memory._host_memory()
    assert whole > 2**20
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    (tmp_path / "unlimited").write_text("max\n")
    files = [str(tmp_path / name) for name in ("unlimited", "memory.max", "absent")]
    monkeypatch.setattr(memory, "_CGROUPS", files)
    assert memory._host_memory() == 2**20


def test_fit():
    assert Fit(10, 10).fits and not Fit(11, 10).fits
    assert Fit(10, 0).fits  # a device that does not say
    assert str(Fit(2**20, 2**31)) == "1.0 of 2048.0 MiB"
    assert str(Fit(2**20, 0)) == "1.0 MiB"


@pytest.mark.parametrize(
    ("accumulate", "found", "most", "wanted"),
    [
        (1, Fit(21, 10), 64, 3),
        (1, Fit(11, 10), 64, 2),
        (3, Fit(11, 10), 64, 4),
        (2, Fit(100, 10), 8, 8),
        (1, Fit(390, 100, 90), 64, 30),  # 300 must shrink to 10
        (1, Fit(145, 100, 105), 256, 0),  # parameters and moments alone are too much
        (8, Fit(11, 10), 8, 0),
        (1, None, 8, 2),
        (6, None, 8, 8),
        (8, None, 8, 0),
    ],
)
def test_the_next_try_is_in_proportion(accumulate, found, most, wanted):
    assert memory.smaller(accumulate, found, most) == wanted


def test_a_backend_that_cannot_tell_is_believed_to_fit():
    silent = types.SimpleNamespace(memory_analysis=lambda: None)
    assert memory.fit(silent, 1).fits
