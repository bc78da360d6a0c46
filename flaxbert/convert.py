"""python -m flaxbert.convert --from=PATH --to=DIR

Reads any BERT folder that flaxbert reads (with or without the bert. prefix, old gamma/beta names,
half precision, shards, a run's workdir) and writes a Hugging Face folder that PyTorch
loads as it is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from absl import flags

from flaxbert import cli
from flaxbert.errors import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "from", "", "Model folder, hub id, embedded:minilm, or workdir.", flag_values=values
    )
    flags.DEFINE_string("to", "", "New or empty folder.", flag_values=values)
    flags.DEFINE_string("revision", "", "Hub revision of --from.", flag_values=values)


def main(values: flags.FlagValues, stop: cli.StopSignal) -> None:
    source, target = str(values["from"].value), Path(values.to)
    for name in ("from", "to"):
        if not values[name].value:
            raise ConfigError(f"--{name} is missing. {(__doc__ or '').splitlines()[0]}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--to: {target} exists and is not an empty folder.")

    from flaxbert.classifier import FlaxBertForSequenceClassification

    if (Path(source) / "model" / "config.json").is_file():
        source = str(Path(source) / "model")  # a workdir: its best model
    model = FlaxBertForSequenceClassification.from_pretrained(source, revision=values.revision)
    for note in model.notes:
        cli.say(f"{source}: {note}")
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        staged = Path(temporary) / "model"  # whole before it stands at --to
        model.save_pretrained(staged)
        staged.replace(target)
    cli.say(f"{target}: written, labels {', '.join(model.config.id2label[:20])}")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
