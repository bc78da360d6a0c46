"""python -m flaxbert.evaluate --workdir=DIR | --model=DIR  [--split=validation | --data=FILE]

Loss and metrics on every example of a split of a run, or of a labelled file. Prints JSON; with
--workdir it also writes eval_results.json (validation) or <split>_results.json there.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from flaxbert import cli
from flaxbert.config import Config, Data, make_config, seed_for
from flaxbert.errors import ConfigError

SPLITS = ("train", "validation", "test")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "A run: its best model, its data.", flag_values=values)
    flags.DEFINE_string("model", "", "A model folder; needs --data.", flag_values=values)
    flags.DEFINE_enum("split", "validation", SPLITS, "Split of the run.", flag_values=values)
    flags.DEFINE_string("data", "", "A labelled .csv, .tsv or .jsonl file.", flag_values=values)
    cli.define_columns(values, label=True)


def main(values: flags.FlagValues, stop: cli.StopSignal) -> None:
    if bool(values.workdir) == bool(values.model):
        raise ConfigError("give either --workdir=DIR or --model=DIR.")
    if values.model and not values.data:
        raise ConfigError("--model needs --data=FILE: a folder does not know its data.")
    if values.data and values["split"].present:
        raise ConfigError("--split and --data exclude each other.")

    from flaxbert.data import splits
    from flaxbert.inference import Predictor, run_config_of
    from flaxbert.loop.evaluate import evaluate
    from flaxbert.loop.results import named_for
    from flaxbert.prepare import resolve_dtype
    from flaxbert.storage.workdir import existing_workdir, read_json, write_json

    workdir = existing_workdir(values.workdir) if values.workdir else None
    if workdir:
        config = make_config(read_json(workdir.config))
        if not workdir.model.is_dir():
            raise ConfigError(f"--workdir: {workdir.root} has no model/ yet; train it first.")
        predictor = Predictor(
            workdir.model,
            dtype=resolve_dtype(config.model.dtype),
            max_length=config.data.max_length,
            packing=config.data.packing,
        )
    else:
        config = run_config_of(values.model) or Config(data=Data())
        predictor = Predictor(values.model, max_length=0)

    data = cli.with_columns(config.data, values)
    labels = predictor.labels
    if values.data:
        name, rows = Path(values.data).stem, splits.read_file(data, values.data)
    else:
        name = values.split
        rows = splits.read_split(data, labels, name, seed_for(config, "data"))
    split = splits.make_examples(
        name,
        rows,
        labels,
        predictor.tokenizer,
        max_length=predictor.max_length,
        separator=data.label_separator,
    )
    for line in split.lines:
        cli.say(line)
    results = evaluate(
        predictor.forward,
        predictor.model.params,
        predictor.batches(split.examples),
        split.examples.labels,
        task=predictor.task,
        loss=config.loss,
        stop=stop.check,
    )
    named = named_for("validation" if values.data else name, results)
    if workdir and not values.data:
        write_json(workdir.results(name), named)
    elif workdir:
        write_json(workdir.root / f"{name}_results.json", named)
    print(json.dumps(named, indent=4, sort_keys=True))


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
