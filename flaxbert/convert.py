"""python -m flaxbert.convert --from=PATH --to=DIR [--format=NAME]

Reads any BERT folder (see docs/formats.md), or a run's workdir or checkpoint, and writes a clean
folder: for PyTorch (model.safetensors), or in another of the formats below. It writes only what the
source has: a model without a classifier stays without one.
"""

from __future__ import annotations

from flaxbert.shell import signals

if __name__ == "__main__":
    signals.install()  # before the slower imports

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flaxbert.errors import ConfigError
from flaxbert.shell import cli
from flaxbert.storage.parameters import description_of
from flaxbert.storage.store import is_url, location, store_for
from flaxbert.weights import formats

if TYPE_CHECKING:
    # Imported where they are used: JAX takes seconds, flag errors should appear at once.
    from flaxbert.weights.folder import Loaded


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "from",
        "",
        "Model folder, hub id, embedded:minilm, a workdir or its checkpoints/<step>; or gs://.",
        flag_values=values,
    )
    flags.DEFINE_string("to", "", "New or empty folder.", flag_values=values)
    flags.DEFINE_string("revision", "", "Hub revision of --from.", flag_values=values)
    choices = list(formats.writers())
    flags.DEFINE_enum(
        "format", choices[0], choices, "Format of the written weights.", flag_values=values
    )


def main(values: flags.FlagValues, stop: cli.StopSignal) -> None:
    source, target = str(values["from"].value), values.to
    for name in ("from", "to"):
        if not values[name].value:
            raise ConfigError(f"--{name} is missing. {(__doc__ or '').splitlines()[0]}")
    if is_url(target):
        raise ConfigError(f"--to: {target}: write to a local folder, then copy it.")
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--to: {target} exists and is not an empty folder.")

    from flaxbert.data.tokenizer_files import files_in
    from flaxbert.weights.folder import read_config, read_weights, write_model
    from flaxbert.weights.resolve import resolve_model

    source = _fetched(source) if is_url(source) else source
    holds_weights = Path(source).is_dir() and any(f.holds(Path(source)) for f in formats.members())
    if (Path(source) / "model" / "config.json").is_file() and not holds_weights:
        source = str(Path(source) / "model")  # a workdir: its best model
    folder, _ = resolve_model(source, values.revision)
    config, ignored = read_config(folder)
    read = read_weights(folder, config, ignored, keep_head=True)
    for note in read.notes:
        cli.say(f"{source}: {note}")
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary,
        signals.undoing(lambda: shutil.rmtree(temporary, ignore_errors=True)),
    ):
        staged = Path(temporary) / "model"  # complete before it is moved to --to
        tokenizer_files = files_in(description_of(folder))
        write_model(staged, read.config, read.params, tokenizer_files, format=values.format)
        staged.replace(target)
    cli.say(f"{target}: written, {_summary(read)}")


def _fetched(url: str) -> str:
    """Returns a local copy of a model in a bucket; for a workdir that of model/."""
    store, folder = store_for(url), location(url)
    names = store.names(folder)
    inside = folder / "model" if {"model", "config.json"} <= set(names) else folder
    return str(store.local_copy(inside))


def _summary(read: Loaded) -> str:
    if not read.fresh:
        return f"labels {', '.join(read.config.id2label[:20])}"
    return f"without {', '.join(read.fresh)}, as the source: train it before it predicts"


def command() -> None:
    """Runs `python -m flaxbert.convert` on sys.argv."""
    cli.run(main, define_flags, __doc__)


if __name__ == "__main__":
    command()
