"""python -m flaxbert.plan --config=FILE.py[:ARG] [--topology=v5e:2x4 --slices=1] [--output=FILE]

What a run would take, without running it: its update and its evaluation are compiled for a TPU
slice that need not be here (extra `tpu`), or for the devices at hand. Told are memory and what is
left of it, FLOPs, bytes, exchanges between chips, and the TPU compiler's own estimate of the time.
"""

from __future__ import annotations

from flaxbert import interrupt

if __name__ == "__main__":
    interrupt.install()  # before the slower imports

import os
from pathlib import Path
from typing import Any

from absl import flags

from flaxbert import cli
from flaxbert.errors import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    cli.define_config(values)
    flags.DEFINE_string(
        "topology",
        "",
        "A TPU slice, such as v5e:2x4; default: the devices here.",
        flag_values=values,
    )
    flags.DEFINE_integer("slices", 1, "So many of it.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("output", "", "A JSON file for the same and more.", flag_values=values)


def main(values: Any, stop: cli.StopSignal) -> None:
    config = cli.read_config(values)
    if values.slices > 1 and not values.topology:
        raise ConfigError("--slices needs --topology: it counts slices that are not here.")
    output = Path(values.output) if values.output else None
    if output and (output.is_dir() or not os.access(output.parent, os.W_OK)):
        raise ConfigError(f"--output={output}: name a file in a folder that can be written to.")

    from flaxbert.planning.chips import chip_of

    chip = chip_of(values.topology)[0] if values.topology else None

    import jax

    from flaxbert.planning import told
    from flaxbert.planning.run import plan_run
    from flaxbert.planning.topology import devices_of
    from flaxbert.prepare import prepare
    from flaxbert.storage import compiled
    from flaxbert.storage.workdir import write_json

    if values.topology:
        devices = devices_of(values.topology, values.slices)
    else:
        compiled.keep()
        devices = jax.devices()
    prepared = prepare(config, None, resumed=False)
    planned = plan_run(config, prepared, devices, chip)
    for line in told.lines(planned, config.model.path, values.topology, values.slices, chip):
        print(line)
    if output:
        write_json(output, told.as_json(planned, values.topology, values.slices, chip))


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
