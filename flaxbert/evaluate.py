"""python -m flaxbert.evaluate --workdir=DIR | --model=DIR  [--split=validation | --data=FILE]

Loss and metrics on every example of a split of a run, or of a labelled file. Prints JSON; for the
validation and test splits of a run it also writes eval_results.json and test_results.json there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from flaxbert import cli
from flaxbert.config import Config, Data, make_config, seed_for
from flaxbert.errors import ConfigError, DataError

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

    from flaxbert.data import sources, splits
    from flaxbert.inference import Predictor, run_config_of
    from flaxbert.loop.evaluate import evaluate
    from flaxbert.loop.results import named_for
    from flaxbert.storage.workdir import existing_workdir, read_json, to_json, write_json

    workdir = existing_workdir(values.workdir) if values.workdir else None
    facts: dict[str, Any] = {}
    if workdir:
        config = make_config(read_json(workdir.config))
        if not workdir.model.is_dir():
            raise ConfigError(f"--workdir: {workdir.root} has no model/ yet; train it first.")
        facts = read_json(workdir.facts)
    else:
        config = run_config_of(values.model) or Config(data=Data(max_length=0))
    predictor = Predictor(
        workdir.model if workdir else values.model,
        dtype=facts.get("dtype", "float32"),
        max_length=config.data.max_length,
        packing=config.data.packing,
    )

    data = cli.with_columns(sources.with_task(config.data), values)
    labels = predictor.labels
    if values.data:
        name, rows = Path(values.data).stem, splits.read_file(data, values.data)
    else:
        name = values.split
        seed = seed_for(config, "data")
        rows = splits.read_split(data, labels, name, seed, facts.get("dataset_revision", ""))[""]
    split = splits.make_examples(
        name,
        rows,
        labels,
        predictor.tokenizer,
        max_length=predictor.max_length,
        separator=data.label_separator,
        on_bad_row=data.on_bad_row,
        on_empty=data.on_empty,
    )
    recorded = facts.get("training" if name == "train" else name, {}).get("")
    if not values.data and recorded not in (None, split.examples.digest()):
        raise DataError(
            f"--split={name}: the data differ from those that {values.workdir} was trained with. "
            "Restore them, or give a file by --data."
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
    # Not for the training split, whose train_results.json is the run's own.
    if workdir and not values.data and name != "train":
        write_json(workdir.results(name), named)
    print(to_json(named))


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
