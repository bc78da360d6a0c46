"""Published figures of the chips that a run can be planned for.

Figures: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages of each chip;
links, and v4's network, as in https://jax-ml.github.io/scaling-book/tpus; memory is what the
compiler calls available. Note: a clock. The compiler estimates in cycles of the matrix units, whose
peak (loop/flops.py) is two times the clock for each of their multipliers.
"""

from __future__ import annotations

import dataclasses
import re

from flaxbert.errors import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    name: str
    compiler_name: str  # what the compiler calls the generation
    dimensions: int  # of a slice's shape
    memory: int  # bytes of HBM that programs can have
    bandwidth: float  # bytes/s of HBM
    clock: float  # cycles/s
    link: float  # bytes/s to a neighbour, each way
    network: float  # bytes/s from other slices, a chip's share of its host's
    one_device: dict[str, str]  # options under which a chip of two cores is one device


_TWO_CORES = {"chip_config_name": "megacore"}

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "v4", 3, int(30.75 * GIB), 1.23e12, 1.05e9, 4.5e10, 6.25e9, _TWO_CORES),
        Chip("v5e", "v5e", 2, int(15.75 * GIB), 0.82e12, 1.5e9, 4.5e10, 3.125e9, {}),
        Chip("v5p", "v5", 3, int(95.74 * GIB), 2.77e12, 1.75e9, 9e10, 6.25e9, _TWO_CORES),
        Chip("v6e", "v6e", 2, int(31.25 * GIB), 1.64e12, 1.75e9, 9e10, 1.25e10, {}),
    )
}

_FORM = re.compile(r"(?P<chip>v\d+\w*):(?P<shape>\d+(x\d+){1,2})")


def chip_of(topology: str) -> tuple[Chip, str]:
    """Returns the chip and the shape of a name like "v5e:2x4"; ConfigError for any other name."""
    found = _FORM.fullmatch(topology)
    chip = CHIPS.get(found["chip"]) if found else None
    if found is None or chip is None or len(found["shape"].split("x")) != chip.dimensions:
        raise ConfigError(
            f"--topology={topology}: expected CHIP:SHAPE with one of {', '.join(CHIPS)}, such as "
            "v4:2x2x1, v5e:2x4, v5p:2x2x1 or v6e:2x4."
        )
    return chip, found["shape"]


def links_of(chip: Chip, shape: str) -> int:
    """Returns the links of a chip at a corner of a slice, which limits all exchanges.

    An axis has one link, or two if its ends are joined (wrap-around): in two dimensions axes of 16,
    in three dimensions all axes longer than 1 if each is a multiple of 4.
    """
    sizes = [int(size) for size in shape.split("x")]
    cubes = chip.dimensions == 3 and all(size % 4 == 0 for size in sizes)
    joined = [cubes or (chip.dimensions == 2 and size == 16) for size in sizes]
    return sum(1 + is_joined for size, is_joined in zip(sizes, joined, strict=True) if size > 1)
