"""python -m flaxbert.plan --config=FILE.py[:ARG] [--topology=v5e:2x4 | --compare=v5e:2x4,v6e:2x4]
[--slices=1] [--largest] [--picture=FILE.png] [--output=FILE]

Plans a run without running it: compiles its update and evaluation for a TPU slice that you need not
have (extra `tpu`), or for the devices of this machine. Prints memory and what is left of it, FLOPs,
bytes, communication between chips, and the TPU compiler's own estimate of the time.
"""

from __future__ import annotations

from flaxbert.shell import signals

if __name__ == "__main__":
    signals.install()  # before the slower imports

import os
from pathlib import Path
from typing import Any

from absl import flags

from flaxbert.errors import ConfigError
from flaxbert.shell import cli


def define_flags(values: flags.FlagValues) -> None:
    cli.define_config(values)
    flags.DEFINE_string(
        "topology",
        "",
        "A TPU slice, such as v5e:2x4; default: the devices of this machine.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "compare", [], "Slices to compare, such as v5e:2x2,v6e:2x2.", flag_values=values
    )
    flags.DEFINE_integer("slices", 1, "Number of slices.", lower_bound=1, flag_values=values)
    flags.DEFINE_bool(
        "largest", False, "Compile larger updates too, until they do not fit.", flag_values=values
    )
    flags.DEFINE_string(
        "picture",
        "",
        "A file for a picture of memory and time: .png, .svg or .pdf.",
        flag_values=values,
    )
    flags.DEFINE_string("output", "", "A JSON file for the plan in detail.", flag_values=values)


def main(values: Any, stop: cli.StopSignal) -> None:
    config = cli.read_config(values)
    _check(values)

    import jax

    from flaxbert.planning import picture, summary
    from flaxbert.planning.compare import compare
    from flaxbert.planning.footprint import plan_run
    from flaxbert.planning.topology import Target, target_of
    from flaxbert.run.inputs import read_inputs
    from flaxbert.storage import compiled
    from flaxbert.storage.workdir import write_json

    if names := _names(values):
        targets = [target_of(name, values.slices) for name in names]
    else:
        compiled.keep()
        targets = [Target(jax.devices())]
    inputs = read_inputs(config, None, {})
    for line in inputs.lines:
        cli.say(line)
    if values.compare:
        print(summary.compared_head(), flush=True)
        choices = []
        for choice in compare(config, inputs, targets):
            print(summary.compared(choice), flush=True)  # the next one takes minutes
            choices.append(choice)
        print("\n".join(summary.recommendation(choices)))
        written: Any = [summary.choice_as_json(choice) for choice in choices]
    else:
        planned = plan_run(config, inputs, targets[0], find_largest=values.largest)
        print("\n".join(summary.lines(planned, config.model.path, targets[0])))
        written = summary.as_json(planned, targets[0])
        if values.picture:
            picture.save(Path(values.picture), planned, targets[0])
    if values.output:
        write_json(Path(values.output), written)


def _names(values: Any) -> list[str]:
    return values.compare or ([values.topology] if values.topology else [])


def _check(values: Any) -> None:
    """Checks flags and output files before minutes are spent on compilation."""
    from flaxbert.planning import picture
    from flaxbert.planning.chips import chip_of

    if values.slices > 1 and not _names(values):
        raise ConfigError("--slices needs --topology: it is the number of such slices.")
    if values.topology and values.compare:
        raise ConfigError(
            "--topology plans for one slice, --compare for several: give one of them."
        )
    for name in ("largest", "picture"):
        if values.compare and values[name].value:
            raise ConfigError(f"--{name} is of one slice: give --topology instead of --compare.")

    for name in ("output", "picture"):
        file = Path(values[name].value)
        if values[name].value and (file.is_dir() or not os.access(file.parent, os.W_OK)):
            raise ConfigError(f"--{name}={file}: name a file in a folder that can be written to.")
    if values.picture:
        picture.check(Path(values.picture))
    for name in _names(values):
        chip_of(name)


def command() -> None:
    """Runs `python -m flaxbert.plan` on sys.argv."""
    cli.run(main, define_flags, __doc__)


if __name__ == "__main__":
    command()
