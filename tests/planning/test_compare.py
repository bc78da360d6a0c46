"""Slices and meshes beside each other: what is compared, and which is recommended."""

from __future__ import annotations

import types

import pytest

from flaxbert.config import Mesh
from flaxbert.planning import summary
from flaxbert.planning.chips import CHIPS, links_of
from flaxbert.planning.compare import Choice, compare, meshes_for, recommended
from flaxbert.planning.topology import Target


@pytest.mark.parametrize(
    ("chip", "shape", "links"),
    [
        ("v5e", "1x1", 0),
        ("v5e", "2x2", 2),
        ("v5e", "2x4", 2),
        ("v5e", "8x16", 3),
        ("v5e", "16x16", 4),
        ("v6e", "4x4", 2),
        ("v4", "2x2x1", 2),
        ("v4", "2x2x4", 3),
        ("v5p", "4x4x4", 6),
        ("v5p", "4x4x2", 3),
    ],
)
def test_links_of_a_corner(chip, shape, links):
    assert links_of(CHIPS[chip], shape) == links


def test_which_meshes_are_compared():
    assert meshes_for(Mesh(), 1) == [Mesh()]
    assert meshes_for(Mesh(), 8) == [Mesh(8, 1, 1), Mesh(1, 8, 1), Mesh(4, 1, 2)]
    assert meshes_for(Mesh(), 3) == [Mesh(3, 1, 1), Mesh(1, 3, 1)]
    assert meshes_for(Mesh(2, 4, 1), 8) == [Mesh(2, 4, 1)]


def choice(name: str, chips: int, seconds: float, exchanged: float = 0.0, margin: int = 2**30):
    memory = types.SimpleNamespace(margin=margin)
    update = types.SimpleNamespace(
        program=types.SimpleNamespace(memory=memory),
        sequences=64,
        seconds=seconds,
        flops_of_real_tokens=1e12,
    )
    planned = types.SimpleNamespace(
        update=update,
        updates=1000,
        exchange_seconds=exchanged,
        seconds=1000 * seconds,
        slowest_seconds=seconds + exchanged,
        peak_flops=chips * 1e14,
    )
    return Choice(Target([None] * chips, name), Mesh(chips, 1, 1), planned)  # pyright: ignore


def test_the_fewest_chip_hours_are_recommended():
    one, four = choice("v5e:1x1", 1, 0.4), choice("v5e:2x2", 4, 0.09, 0.02)
    assert recommended([four, one]) is one
    lines = summary.recommendation([one, four])
    assert "recommended: v5e:1x1, mesh one device: fewest chip hours, or nearly" in lines
    assert "fastest: v5e:2x2, mesh data 4" in lines
    # 0.09 s and 0.02 s of exchanges.
    assert summary.compared(four).split("  ")[-1].strip() == f"{4 * 110 / 3600:.3f}"
    assert "582" in summary.compared(four) and "2.3 %" in summary.compared(four)


def test_of_equals_the_faster_one():
    one, four = choice("v5e:1x1", 1, 0.4), choice("v5e:2x2", 4, 0.1, 0.004)
    assert recommended([one, four]) is four
    # Exchanges count: with more of them it is not as good any more.
    assert recommended([one, choice("v5e:2x2", 4, 0.1, 0.02)]) is one


def test_what_does_not_fit_is_not_recommended():
    small, large = choice("v5e:1x1", 1, 0.1, margin=-(2**30)), choice("v6e:1x1", 1, 0.4)
    assert recommended([small, large]) is large
    assert "NO: 1.00 GiB short" in summary.compared(small)
    assert recommended([small]) is None
    assert summary.recommendation([small]) == ["None of them fits."]


def test_a_refused_mesh_is_told(monkeypatch):
    from flaxbert.config import Config
    from flaxbert.errors import ConfigError
    from flaxbert.planning import compare as module

    def plan_run(config, prepared, target):
        if config.mesh.model == 2:
            raise ConfigError("heads do not divide")
        return choice("v5e:2x2", 4, 0.1).planned

    monkeypatch.setattr(module, "plan_run", plan_run)
    target = Target([None] * 4, "v5e:2x2")
    choices = list(compare(Config(), None, [target]))  # pyright: ignore
    assert [each.refused for each in choices] == ["", "", "heads do not divide"]
    assert "v5e:2x2, mesh data 2 x model 2: heads do not divide" in summary.recommendation(choices)
    written = [summary.choice_as_json(each) for each in choices[2:]]
    assert written[0]["refused"] == "heads do not divide" and written[0]["mesh"]["model"] == 2
