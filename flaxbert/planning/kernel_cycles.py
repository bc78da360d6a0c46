"""Cycles of the Pallas kernels for TPUs, for which the compiler has no estimate in a program.

When it compiles a kernel alone, with a flag, it writes a static profile: the scheduled
instructions, with the time of copies.

Note: that needs a separate process. The flag must be set when the compiler is loaded, and where it
cannot count (it has no such model of v4) it ends the process; then a formula is used, which is
within a third of the count.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flaxbert.planning.chips import Chip
from flaxbert.planning.hlo import Instruction
from flaxbert.shell import subprocesses

_SECONDS = 600  # for all kernels of a program
_NAME = re.compile(r"(attention_(?:forward|backward)(?:_dropout)?)(?:\.\d+)?")
_CYCLES = re.compile(r"estimated_cycles: (\d+)")

# For the formula: vector operations per logit, and vector operations of a core per cycle.
_OPERATIONS, _A_CYCLE = 40, 4 * 8 * 128


@dataclasses.dataclass(frozen=True, order=True)
class Kernel:
    """A call of a kernel of model/kernels/tpu_attention.py."""

    name: str
    rows: int
    length: int
    features: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Counted:
    """Calls of a kernel in one call of a program."""

    kernel: Kernel
    calls: int
    cycles: int  # of each
    by_formula: bool


def kernel_of(instruction: Instruction) -> Kernel | None:
    """Returns the kernel that an instruction calls, if it is one of ours."""
    found = _NAME.fullmatch(instruction.name)
    if instruction.target != "tpu_custom_call" or not found:
        return None
    tokens = next((shape for shape in instruction.shapes if len(shape) == 3), None)
    statistic = next((shape for shape in instruction.shapes if len(shape) == 4), None)
    if tokens is None or statistic is None:  # an unknown form
        return None
    (rows, length, features), (_, groups, together, _) = tokens, statistic
    return Kernel(found[1], rows, length, features, groups * together)


class KernelCycles:
    """Cycles of kernels on a chip; the compiler is asked once for each kernel."""

    def __init__(self, topology: str, chip: Chip) -> None:
        self._topology, self._chip = topology, chip
        self._known: dict[Kernel, tuple[int, bool]] = {}

    def count(self, calls: dict[Kernel, int]) -> tuple[Counted, ...]:
        unknown = sorted(set(calls) - set(self._known))
        if unknown:
            found = _compiled_alone(unknown, self._topology)
            for kernel in unknown:
                cycles = found.get(kernel)
                self._known[kernel] = (cycles or by_formula(kernel, self._chip), cycles is None)
        return tuple(
            Counted(kernel, times, *self._known[kernel]) for kernel, times in sorted(calls.items())
        )


def by_formula(kernel: Kernel, chip: Chip) -> int:
    """Returns the cycles of vector operations or of HBM traffic, whichever is more."""
    logits = kernel.rows * kernel.heads * kernel.length**2
    arrays = 4 if "forward" in kernel.name else 7
    traffic = arrays * 2 * kernel.rows * kernel.length * kernel.features
    cores = 2 if chip.one_device else 1
    vectors = logits * _OPERATIONS / (_A_CYCLE * cores)
    return round(max(vectors, traffic / chip.bandwidth * chip.clock))


def _compiled_alone(kernels: Iterable[Kernel], topology: str) -> dict[Kernel, int]:
    asked = json.dumps([dataclasses.asdict(kernel) for kernel in kernels])
    command = [sys.executable, "-m", "flaxbert.planning.kernel_cycles", topology, asked]
    try:
        out = subprocesses.run(command, _SECONDS).stdout
    except subprocess.TimeoutExpired as error:
        out = error.stdout or ""
        out = out.decode() if isinstance(out, bytes) else out
    found = {}
    for line in out.splitlines():
        if not line.startswith('{"kernel"'):
            continue  # output of the compiler
        answer = json.loads(line)
        found[Kernel(**answer["kernel"])] = answer["cycles"]
    return found


def main(topology: str, asked: str) -> None:
    """Prints a line {"kernel", "cycles"} of each kernel, until the compiler ends the process."""
    with tempfile.TemporaryDirectory() as profiles:
        flags = f"--xla_jf_dump_static_llo_profile_to={profiles}"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}"

        from flaxbert.planning.tpu_devices import devices_of

        device = devices_of(topology, 1)[0]
        for each in json.loads(asked):
            _compile(Kernel(**each), device)
            for file in Path(profiles).iterdir():
                if _NAME.match(file.name):
                    cycles = int(_CYCLES.findall(file.read_text())[0])
                    print(json.dumps({"kernel": each, "cycles": cycles}), flush=True)
                file.unlink()


def _compile(kernel: Kernel, device: Any) -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from flaxbert.model.kernels import tpu_attention
    from flaxbert.model.kernels.tpu_sizes import LANES

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    sizes = (kernel.rows, kernel.length)
    tokens = array(jnp.bfloat16, *sizes, kernel.features)
    places = [array(dtype, *sizes) for dtype in (jnp.int32, jnp.int32, jnp.uint32)]
    arrays = [tokens, tokens, tokens, *places]
    function: Any = tpu_attention.attention_forward
    if "backward" in kernel.name:
        function = tpu_attention.attention_backward
        groups = kernel.features // LANES
        statistic = (kernel.rows, groups, kernel.heads // groups, kernel.length)
        arrays += [array(jnp.float32, *statistic), tokens]
    rate = 0.1 if kernel.name.endswith("_dropout") else 0.0

    def alone(*arrays: jax.Array) -> Any:
        return function(*arrays, heads=kernel.heads, rate=rate, interpret=False)

    jax.jit(alone).lower(*arrays).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
