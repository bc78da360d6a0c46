"""The tables of docs/scaling.md are what the compiler said, and a case can be compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks import BENCHMARKS, load
from tests.commands import ROOT
from tests.planning import golden

scaling = load("scaling")


def case(chips: int, *, model="base", kind="weak", axis="data", update=0.01, exchange=0.0):
    each = scaling.Case(model, kind, axis, chips)
    return {
        "model": model,
        "scaling": kind,
        "axis": axis,
        "chips": chips,
        "mesh": list(each.mesh),
        "slice": f"v5e:{scaling.SHAPES[chips]}",
        "rows": each.rows,
        "update_seconds": update,
        "exchange_seconds": exchange,
        "mfu": 0.6,
        "needed": 2**30,
    }


def table(*cases) -> list[str]:
    return scaling.tables({str(number): found for number, found in enumerate(cases)}).splitlines()


def test_ranges_go_from_nothing_hidden_to_all_of_it():
    one = case(1)
    lines = scaling.tables({"base-weak-data-1": one, "8": case(8, exchange=0.0025)}).splitlines()
    assert lines[0] == "### bert-base, weak scaling: 64 rows a chip"
    assert lines[4] == (
        "| 1 | v5e:1x1 | one device | 10.0 ms | 0.0 ms | 6,400 | 100% | 60% | 1.00 GiB |"
    )
    assert lines[5] == (
        "| 8 | v5e:2x4 | data 8 | 10.0 ms | 2.5 ms | 40,960 to 51,200 | 80% to 100% | 48% to 60% "
        "| 1.00 GiB |"
    )


def test_exchanges_that_take_longer_are_not_hidden():
    lines = table(case(8, exchange=0.02))
    assert "17,067 to 25,600" in lines[4] and "20% to 30%" in lines[4]


def test_what_both_kinds_have_in_common_is_in_both():
    same = case(16)  # 64 rows a chip are 1,024 of 16
    assert same["rows"] == scaling.STRONG["base"]
    text = "\n".join(table(same, case(8, kind="strong")))
    assert "weak scaling" in text and "strong scaling: 1024 rows in all" in text
    assert text.count("| 16 |") == 2 and text.count("| 8 |") == 1


def test_every_case_has_its_own_name_and_divides_its_model():
    found = list(scaling.cases())
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert each.rows % (each.mesh[0] * each.mesh[1]) == 0
        hidden = scaling.SIZES[each.model].get("hidden_size", 768)
        assert hidden % each.mesh[1] == 0


def test_the_page_is_what_the_results_say():
    file = BENCHMARKS / "results" / "scaling_v5e.json"
    found = json.loads(file.read_text())["cases"]
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert f"<!-- tables of v5e -->\n\n{scaling.tables(found)}\n<!-- end of v5e -->" in page


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    not golden.is_there(), reason="needs the TPU's compiler: make test-slow fetches it"
)
def test_a_case_is_compiled():
    tiny = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
    }
    code = (
        f"import json, scaling; scaling.SIZES['base'] = {tiny}; scaling.WEAK['base'] = 8; "
        "print(json.dumps(scaling.planned(scaling.Case('base', 'weak', 'fsdp', 8), 'v5e', {})))"
    )
    paths = os.pathsep.join([golden.environment()["PYTHONPATH"], str(BENCHMARKS)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 64 and found["mesh"] == [1, 8, 1]
    assert found["update_seconds"] > 0 and found["exchange_seconds"] > 0
    assert {axis for each in found["exchanges"] for axis in each["axes"]} == {"fsdp"}
