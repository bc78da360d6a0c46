"""The page of benchmarks is what the result files say, whatever device they come from."""

from __future__ import annotations

import pytest

from tests.benchmarks import load

load("details")
render = load("render")

# Made up, to see how they are shown.
CPU = {
    "machine": {
        "cpu": "Some CPU",
        "cores": 2,
        "bfloat16": False,
        "instructions": "avx2",
        "memory_gib": 24.0,
        "system": "Linux x86_64",
        "python": "3.11.7",
    },
    "workloads": {
        "reviews": {
            "what": "sentences",
            "shape": "minilm",
            "batch": 32,
            "versions": {"jax": "0.10.2"},
            "sides": {},
            "speed_ratios": {},
        }
    },
}
GPU = {
    "machine": {
        "gpu": "Some GPU 80GB",
        "driver": {"driver_version": "580.1", "clocks.max.sm": "1980 MHz"},
        "cpu": "Some CPU",
        "cores": 16,
        "system": "Linux x86_64",
        "python": "3.12.3",
    },
    "workloads": {
        "base-512": {
            "what": "short sentences, 512 an update",
            "shape": "base",
            "batch": 512,
            "target": "at least 40,000 sequences/s",
            "modes": ["pad128-float32", "unpadded-bfloat16", "full-bfloat16-graphs"],
            "shapes": ["77 x 88", "82 x 88"],
            "device": {"matmul_tflops": 798.4, "adamw_ms": 1.049, "adamw_sent_ms": 3.7},
            "sides": {
                "flaxbert bfloat16": {
                    "samples_per_second": 41234.5,
                    "quartiles": [41000.0, 41500.0],
                    "seconds_per_update": 0.012417,
                    "real_per_computed_token": 0.976,
                    "mfu": 0.351,
                    "peak_mib": 9876.5,
                    "warmup_seconds": 61.2,
                    "versions": {"jax": "0.11.2"},
                },
                "pytorch pad128-float32": {
                    "samples_per_second": 700.0,
                    "seconds_per_update": 0.7314,
                    "real_per_computed_token": 0.104,
                    "mfu": 0.006,
                    "peak_mib": 40000.0,
                    "warmup_seconds": 15.0,
                    "compiled_while_timed": 2,
                    "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
                },
            },
            "speed_ratios": {
                "flaxbert bfloat16 / pytorch pad128-float32": {
                    "median": 58.906,
                    "least": 58.1,
                    "most": 59.5,
                }
            },
            "failed": {
                "pytorch unpadded-bfloat16": {"reason": "RuntimeError: no kernel", "rounds": []},
                "pytorch dynamic-bfloat16": {"reason": "say `a` | ``b``", "rounds": [1234.56]},
            },
        }
    },
}


def test_the_page_is_what_the_result_files_say():
    page = render.README.read_text(encoding="utf-8")
    assert page == render.render(), "run python benchmarks/render.py"


def test_a_gpu_stands_there_with_its_figures():
    page = render.page({"some-gpu-80gb.json": GPU})
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[1] == (
        "| flaxbert bfloat16 | 41,234 | 41,000 to 41,500 | 12.42 | 0.98 | 35.1 % | 9,876 | 61.2 | "
        " |"
    )
    assert rows[2] == (
        "| pytorch pad128-float32 | 700 |  | 731.40 | 0.10 | 0.6 % | 40,000 | 15.0 | "
        "58.91x (58.10 to 59.50) |"
    )
    assert len({row.count("|") for row in rows}) == 1
    for told in (
        "## Some GPU 80GB",
        "jax 0.11.2, torch 2.11.0, transformers 5.17.0",
        "bfloat16 products reach 798 TFLOP/s here, updates of AdamW alone take 1.05 ms "
        "in one program and 3.70 ms sent one by one.",
        "Target: at least 40,000 sequences/s.",
        "\nNot run: full-bfloat16-graphs.\n",
        "pytorch unpadded-bfloat16 did not run: `RuntimeError: no kernel`",
        "\n\npytorch dynamic-bfloat16 failed in round 2, after 1,234.6 sequences/s: "
        "``` say `a` | ``b`` ```\n",
        "pytorch pad128-float32 was still compiling while it was timed.",
    ):
        assert told in page


@pytest.mark.parametrize(
    ("records", "unmeasured"),
    [
        ({}, ["CPU", "GPU", "TPU"]),
        ({"some-gpu-80gb.json": GPU}, ["CPU", "TPU"]),
        ({"some-cpu.json": CPU}, ["GPU", "TPU"]),
        ({"some-cpu.json": CPU, "some-gpu-80gb.json": GPU}, ["TPU"]),
    ],
)
def test_what_has_no_file_is_called_unmeasured(records, unmeasured):
    sections = render.page(records).split("\n## ")
    assert [part.split("\n")[0] for part in sections if "Unmeasured" in part] == unmeasured


@pytest.mark.parametrize(("record", "told"), [(CPU, "huge pages"), (GPU, "varlen_attn")])
def test_sides_are_explained_where_they_are_measured(record, told):
    assert told in render.page({"some.json": record})
    assert told not in render.page({})


def test_the_floor_packing_and_growth_stand_there_with_their_figures():
    floor = {
        "update_seconds": 0.4321,
        "linear_seconds": 0.3619,
        "linear_gflops": 144.6,
        "adamw_seconds": 0.0281,
        "floor / update": 0.903,
    }
    case = {
        "costs of": "cpu",
        "batch": 2048,
        "rows a multiple of": 8,
        "shapes": ["352 x 80", "360 x 80"],
        "real_per_computed_token": 0.971,
        "packed_per_second": 1234567,
    }
    lengths = {"count": 64000, "mean": 13.28, "median": 11, "p95": 30, "longest": 66}
    packing = {"lengths": lengths, "machine": {"cpu": "Some CPU"}, "padded to 128": 0.104}
    growth = {
        "machine": {"cpu": "Some CPU", "cores": 2},
        "rows": {"once": 20000, "ten times": 200000},
        "medians": {
            "once": {"seconds": 20.04, "peak_mib": 700.0},
            "ten times": {"seconds": 120.0, "peak_mib": 1770.0},
        },
        "ratios": {"seconds": 5.988, "peak_mib": 2.529},
    }
    page = render.page(
        {"floor.json": {"a run": floor}, "packing.json": packing | {"cases": [case]},
         "growth.json": growth}
    )  # fmt: skip
    for row in (
        "| a run | 432 | 362 (145 GFLOP/s) | 28 | 90 % |",
        "| cpu | 2,048 | 8 | 352 x 80, 360 x 80 | 0.971 | 1,234,567 |",
        "| seconds of the whole command | 20.0 | 120.0 | 5.99 |",
        "| peak MiB | 700.0 | 1,770.0 | 2.53 |",
    ):
        assert row in page
