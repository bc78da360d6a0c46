"""How an update of bert-base and bert-large would scale over TPUs, by their compiler's estimate.

    python benchmarks/scaling.py [--only=base-weak-data] [--chip=v5e]

Nothing runs on a TPU: each case is compiled as `python -m flaxbert.plan` does it (extra `tpu`), and
what it says is written down. Weak scaling keeps the rows of a chip, strong scaling those of all
chips. Rows are full: 128 tokens, one sequence each. A case takes minutes; those whose result is
there are left out, and docs/scaling.md is rendered anew after each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
LENGTH = 128
AXES = ("data", "fsdp", "model")
EXCHANGE = ("kind", "axes", "count", "bytes", "received")  # what is kept of each
SHAPES = {1: "1x1", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
# Rows of a chip where they stay, of all chips where those do.
WEAK = {"base": 64, "large": 32}
STRONG = {"base": 1024, "large": 512}


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    scaling: str  # weak | strong
    axis: str  # along which more chips are added: data | fsdp; model = data x 2 parts of heads
    chips: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.scaling}-{self.axis}-{self.chips}"

    @property
    def rows(self) -> int:
        if self.scaling == "strong":
            return STRONG[self.model]
        return WEAK[self.model] * self.chips

    @property
    def mesh(self) -> tuple[int, int, int]:
        return {
            "data": (self.chips, 1, 1),
            "fsdp": (1, self.chips, 1),
            "model": (self.chips // 2, 1, 2),
        }[self.axis]


def cases() -> Iterator[Case]:
    """Yields all, the most telling ones first: together they take hours."""
    for model in SIZES:
        yield Case(model, "weak", "data", 1)
        for chips in (8, 64, 256, 16, 32, 128):
            yield Case(model, "weak", "data", chips)
        for chips in (256, 64, 8, 128, 32):  # 16 chips: as in weak scaling
            yield Case(model, "strong", "data", chips)
        for axis in AXES[1:]:
            for chips in (8, 64, 256):
                yield Case(model, "weak", axis, chips)


def planned(case: Case, chip: str, cycles: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of a case."""
    from flaxbert.config import default_config, make_config
    from flaxbert.planning.footprint import plan_run
    from flaxbert.planning.topology import target_of

    values = default_config()
    values.mesh.data, values.mesh.fsdp, values.mesh.model = case.mesh
    values.model.dtype = "bfloat16"
    values.data.task, values.data.train = "text", "full rows"  # of which nothing is read
    values.data.packing, values.data.row_length = "pad", LENGTH
    values.train.batch_size, values.train.accumulate = case.rows, 1
    config = make_config(values)
    target = target_of(f"{chip}:{SHAPES[case.chips]}", 1)
    target = dataclasses.replace(
        target, kernel_cycles=cycles.setdefault(chip, target.kernel_cycles)
    )
    begun = time.perf_counter()
    plan = plan_run(config, _inputs(case), target)
    program = plan.update.program
    return {
        **dataclasses.asdict(case),
        "mesh": case.mesh,
        "slice": f"{chip}:{SHAPES[case.chips]}",
        "rows": case.rows,
        "update_seconds": plan.update.seconds,
        "exchange_seconds": plan.exchange_seconds,
        "mfu": plan.mfu,
        "needed": program.memory.needed,
        "limit": program.memory.limit,
        "exchanges": [
            {name: getattr(exchange, name) for name in EXCHANGE} for exchange in program.exchanges
        ],
        "main_memory": program.main_memory,
        "plan_seconds": round(time.perf_counter() - begun, 1),
    }


def _inputs(case: Case) -> Any:
    """What a run would have read: full rows of token 1, with two labels."""
    from flaxbert.data.batches import Examples
    from flaxbert.data.checks import Labels
    from flaxbert.data.tokenize import Tokens
    from flaxbert.model.bert_config import BertConfig
    from flaxbert.run.inputs import Inputs, Start

    tokens = case.rows * LENGTH
    return Inputs(
        bert=BertConfig(**SIZES[case.model], id2label=("0", "1")),
        labels=Labels("single_label", ("0", "1")),
        train=Examples(
            Tokens(
                np.ones(tokens, np.uint16),
                np.zeros(tokens, np.uint8),
                np.arange(0, tokens + 1, LENGTH),
                truncated=0,
                unknown_share=0.0,
            ),
            np.zeros(case.rows, np.int32),
        ),
        validation={},
        lines=(),
        report={},
        tokenizer_files={},
        start=Start("", "", [], [], 0),
        revision="",
        dataset_revision="",
        best_metric="accuracy",
        class_weights=(),
    )


def write_page(found: dict[str, Any], chip: str) -> None:
    """Renders the tables into the page, between its two marks for the chip."""
    start, end = f"<!-- tables of {chip} -->\n", f"<!-- end of {chip} -->"
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(start)
    if not mark:
        raise SystemExit(f"{PAGE} has no place for them: add {start.strip()} and {end}")
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{start}\n{tables(found)}\n{end}{after}", encoding="utf-8")


def tables(found: dict[str, Any]) -> str:
    parts = []
    for model in SIZES:
        for scaling in ("weak", "strong"):
            rows = [case for case in found.values() if _belongs(case, model, scaling)]
            if not rows:
                continue
            rows.sort(key=lambda case: (AXES.index(case["axis"]), case["chips"]))
            one = found.get(f"{model}-weak-data-1") if scaling == "weak" else None
            first = one or min(rows, key=lambda case: case["chips"])
            weak = scaling == "weak"
            kept = f"{WEAK[model]} rows a chip" if weak else f"{STRONG[model]} rows in all"
            parts += [f"### bert-{model}, {scaling} scaling: {kept}", "", *_HEAD]
            parts += [_row(case, first) for case in rows]
            parts.append("")
    return "\n".join(parts)


def _belongs(case: dict[str, Any], model: str, scaling: str) -> bool:
    if case["model"] != model:
        return False
    # Where both are the same, it was compiled once.
    return case["scaling"] == scaling or (
        scaling == "strong" and case["axis"] == "data" and case["rows"] == STRONG[model]
    )


_HEAD = (
    "| chips | slice | mesh | update | exchanges, at least | sequences/s | of linear | MFU "
    "| memory |",
    "|---|---|---|---|---|---|---|---|---|",
)


def _speeds(case: dict[str, Any]) -> list[float]:
    """Sequences/s: nothing hidden, all hidden."""
    alone, exchanged = case["update_seconds"], case["exchange_seconds"]
    return [case["rows"] / taken for taken in (alone + exchanged, max(alone, exchanged))]


def _row(case: dict[str, Any], first: dict[str, Any]) -> str:
    """Ranges go from nothing hidden of what chips exchange to everything."""
    alone, exchanged = case["update_seconds"], case["exchange_seconds"]
    speeds = _speeds(case)
    linear = [
        speed / case["chips"] / (fastest / first["chips"])
        for speed, fastest in zip(speeds, _speeds(first), strict=True)
    ]
    mfu = [case["mfu"] * alone * speed / case["rows"] for speed in speeds]
    names = zip(AXES, case["mesh"], strict=True)
    mesh = " x ".join(f"{axis} {size}" for axis, size in names if size > 1) or "one device"

    def between(values: list[float], form: str) -> str:
        less, more = (format(value, form) for value in values)
        return less if less == more else f"{less} to {more}"

    return (
        f"| {case['chips']} | {case['slice']} | {mesh} | {1e3 * alone:.1f} ms | "
        f"{1e3 * exchanged:.1f} ms | {between(speeds, ',.0f')} | {between(linear, '.0%')} | "
        f"{between(mfu, '.0%')} | {case['needed'] / 2**30:.2f} GiB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--chip", default="v5e", choices=("v5e", "v6e"))
    parser.add_argument("--render", action="store_true", help="write the page and nothing else")
    arguments = parser.parse_args()
    file = RESULTS / f"scaling_{arguments.chip}.json"
    found: dict[str, Any] = json.loads(file.read_text())["cases"] if file.is_file() else {}
    from flaxbert.errors import ConfigError

    cycles: dict[str, Any] = {}
    for case in () if arguments.render else cases():
        if case.name in found or not case.name.startswith(arguments.only):
            continue
        try:
            found[case.name] = planned(case, arguments.chip, cycles)
        except ConfigError as error:  # too little memory
            print(case.name, error, flush=True)
            continue
        print(case.name, json.dumps(found[case.name]), flush=True)
        record = {
            "what": "updates by the TPU compiler's estimate, compiled where there is no TPU",
            "command": f"python benchmarks/scaling.py --chip={arguments.chip}",
            "versions": {name: version(name) for name in ("jax", "flax", "libtpu")},
            "cases": found,
        }
        file.write_text(json.dumps(record, indent=1) + "\n")
    write_page(found, arguments.chip)


if __name__ == "__main__":
    main()
