"""Evaluation of 1 to 130 examples, 1 to 17 rows, on 1, 2, 4 and 8 devices against a direct one.

    python -m tests.soak.evaluation --output=tests/results/evaluation.json

A case fails where an example is missing or twice, or a logit or metric has another bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax

from tests.soak.record import Record, command_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)

    from tests.loop import grid

    def case(name: str) -> dict[str, Any]:
        try:
            return {"exact": grid.check(grid.SIZES, grid.ROWS, int(name.split()[0]))}
        except AssertionError as error:
            return {"exact": 0, "problem": str(error)}

    record = Record(
        arguments.output, __doc__.splitlines()[0], command_line("evaluation", arguments)
    )
    record.run([f"{devices} devices" for devices in grid.DEVICES], case)
    exact = sum(case["exact"] for case in record.cases.values())
    asked = len(grid.SIZES) * len(grid.ROWS) * len(grid.DEVICES)
    record.finish(right=exact == asked, evaluations=asked, exact=exact)


if __name__ == "__main__":
    main()
