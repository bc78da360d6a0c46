"""Losses of three layouts of eight devices on three meshes, from real processes.

    python -m tests.soak.parity --output=tests/results/parity.json

Each is compared with one process of eight devices along `data`: 50 updates in float32, 5 in
float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tests.hosts.parity import LAYOUTS, MESHES, MOST, losses
from tests.soak.record import Record, command_line, workplace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    record = Record(arguments.output, __doc__.splitlines()[0], command_line("parity", arguments))
    with workplace() as folder:
        reference: dict[str, list[float]] = {}

        def case(name: str) -> dict[str, Any]:
            layout, mesh = name.split(", ")
            if not reference:
                reference.update(losses(folder / "reference", "1 x 8", "data 8"))
            found = losses(folder / name.replace(" ", ""), layout, mesh)
            return {
                dtype: float(np.abs(np.array(found[dtype]) / np.array(expected) - 1).max())
                for dtype, expected in reference.items()
            }

        record.run([f"{layout}, {mesh}" for mesh in MESHES for layout in LAYOUTS], case)
    most = {dtype: max(case[dtype] for case in record.cases.values()) for dtype in MOST}
    record.finish(
        right=all(most[dtype] <= MOST[dtype] for dtype in MOST),
        largest_relative_difference=most,
        allowed=MOST,
    )


if __name__ == "__main__":
    main()
