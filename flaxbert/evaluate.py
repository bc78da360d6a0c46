"""python -m flaxbert.evaluate --workdir=RUN | --model=DIR  [--split=validation | --data=FILE]

Loss and metrics on every example of a split of a run, or of a labelled file: JSON on standard
output, scores per label as a table on standard error. A split of a run also leaves
eval_results.json (<split>_results.json) and eval_report.json in the run's folder; --output=DIR has
these files, and the predictions, written there.
"""

from __future__ import annotations

from flaxbert.shell import signals

if __name__ == "__main__":
    signals.install()  # before the slower imports

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from absl import flags

from flaxbert.config import Config, Data, make_config, seed_for
from flaxbert.errors import ConfigError, DataError
from flaxbert.shell import cli
from flaxbert.storage.store import is_url, on_disk, store_for

if TYPE_CHECKING:
    import numpy as np

    from flaxbert.data.splits import Split
    from flaxbert.inference.classifier import Classifier
    from flaxbert.storage.workdir import Workdir


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "A run: its best model, its data.", flag_values=values)
    flags.DEFINE_string("model", "", "A model folder; needs --data.", flag_values=values)
    cli.define_split(values, "validation")
    kinds = "A labelled file: .csv, .tsv, .jsonl (each also .gz) or .parquet."
    flags.DEFINE_string("data", "", kinds, flag_values=values)
    flags.DEFINE_string(
        "output", "", "A directory for results, report and predictions.", flag_values=values
    )
    cli.define_inference(values)
    cli.define_columns(values, label=True)


def main(values: flags.FlagValues, stop: cli.StopSignal) -> None:
    if bool(values.workdir) == bool(values.model):
        raise ConfigError("give either --workdir=DIR or --model=DIR.")
    if values.model and not values.data:
        raise ConfigError("--model needs --data=FILE: a folder does not know its data.")
    if values.data and values["split"].present:
        raise ConfigError("--split and --data exclude each other.")
    if is_url(values.output):
        raise ConfigError(f"--output: {values.output}: name a local directory.")
    if values.output and Path(values.output).exists() and not Path(values.output).is_dir():
        raise ConfigError(f"--output: {values.output} is a file; name a directory.")

    from flaxbert.inference.classifier import Classifier, run_config_of
    from flaxbert.run.result_names import merged, named_for, predictions_name
    from flaxbert.storage import compiled
    from flaxbert.storage.workdir import (
        Workdir,
        existing_workdir,
        read_json,
        to_json,
        trained_model,
    )

    compiled.keep()
    workdir = existing_workdir(values.workdir) if values.workdir else None
    facts: dict[str, Any] = {}
    if workdir:
        model = trained_model(workdir)
        config = make_config(read_json(workdir.config))
        facts = read_json(workdir.facts)
    else:
        model = on_disk(values.model)
        config = run_config_of(model) or Config(data=Data(max_length=0))
    classifier = Classifier.from_pretrained(
        model,
        packing=config.data.packing,
        **cli.inference_options(values, facts.get("dtype", "float32")),
    )
    splits = _read(values, config, classifier, facts)
    computed = {suffix: _evaluate(classifier, s, config) for suffix, s in splits.items()}
    report: dict[str, Any] = {}
    for suffix, (logits, _) in computed.items():
        labels = splits[suffix].examples.labels
        told = classifier.task.report(logits, labels, classifier.labels.names)
        report |= {suffix: told} if suffix else told
        for line in ([f"{suffix}:"] if suffix else []) + classifier.task.report_lines(told):
            cli.say(line)

    # A file has no split of its own: its results are named as the validation split's.
    name = "validation" if values.data else values.split
    named = named_for(name, merged({suffix: found for suffix, (_, found) in computed.items()}))
    if values.output:
        Path(values.output).mkdir(parents=True, exist_ok=True)
        written = Workdir(Path(values.output))
        _write(written, name, named, report)
        for suffix, (logits, _) in computed.items():
            task = Path(values.data).stem if values.data else config.data.task
            path = predictions_name(task, "test" if values.data else name, suffix)
            _write_predictions(written.root / path, classifier, logits)
    # Not for the training split, whose train_results.json is the run's own.
    elif workdir and not values.data and name != "train":
        named = _kept(workdir, name) | named
        _write(workdir, name, named, report)
        _merge(workdir, named)
    print(to_json(named))


def _read(
    values: Any, config: Config, classifier: Classifier, facts: dict[str, Any]
) -> dict[str, Split]:
    """Returns the checked examples, encoded as the run encodes them: {suffix: split}."""
    from flaxbert.data import splits
    from flaxbert.data.sources import named_tasks
    from flaxbert.data.tokenize import resolve_max_length

    data = cli.with_columns(named_tasks.with_task(config.data), values)
    labels = classifier.labels
    if values.data:
        name, read = Path(values.data).stem, {"": splits.read_file(data, values.data)}
    else:
        name, revision = values.split, facts.get("dataset_revision", "")
        read = splits.read_split(data, labels, name, seed_for(config, "data"), revision)
    positions = classifier.model.config.max_position_embeddings
    recorded = {} if values.data else facts.get("training" if name == "train" else name, {})
    made = {}
    for suffix, rows in read.items():
        made[suffix] = splits.make_examples(
            f"{name} {suffix}".rstrip(),
            rows,
            labels,
            classifier.tokenizer,
            max_length=resolve_max_length(data.max_length, positions),
            separator=data.label_separator,
            on_bad_row=data.on_bad_row,
            on_empty=data.on_empty,
        )
        if recorded.get(suffix) not in (None, made[suffix].examples.digest):
            raise DataError(
                f"--split={name}: the data differ from those that {values.workdir} was trained "
                "with. Restore them, or give a file by --data."
            )
        for line in made[suffix].lines:
            cli.say(line)
    return made


def _evaluate(
    classifier: Classifier, split: Split, config: Config
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the logits of every example; loss, metrics, speed, and how many rows are none."""
    from flaxbert.data.tokenize import resolve_max_length
    from flaxbert.loop.evaluation import Stopwatch, scores
    from flaxbert.shell.progress_bar import progress_bar

    positions = classifier.model.config.max_position_embeddings
    tokens, windows = split.examples.tokens, ""
    if classifier.long != "truncate" or classifier.max_length != resolve_max_length(
        config.data.max_length, positions
    ):
        tokens = classifier.encode(split.rows.texts, split.rows.pairs)
        windows = f" in {len(tokens)} windows" if tokens.owners is not None else ""
        how = {"truncate": "cut", "head_tail": "cut in the middle", "window": "read"}
        cli.say(
            f"{tokens.truncated} texts over {classifier.max_length} tokens "
            f"({how[classifier.long]}{windows})"
        )
    with progress_bar(len(tokens), "windows" if windows else "rows") as bar:
        stopwatch = Stopwatch(bar.update)
        logits = classifier.compute(tokens, stopwatch)
        labels = split.examples.labels
        results = scores(classifier.task, logits, labels, config.loss)
        skipped = {"samples_skipped": sum(map(len, split.rows.skipped.values()))}
        return logits, results | stopwatch.results(len(labels)) | skipped


def _kept(workdir: Workdir, name: str) -> dict[str, Any]:
    """Returns when the best model was reached, which the run's own results say."""
    from flaxbert.storage.workdir import read_json

    path = workdir.results(name)
    stored = read_json(path) if workdir.store.is_file(path) else {}
    return {key: stored[key] for key in ("epoch", "step") if key in stored}


def _write(workdir: Workdir, name: str, named: dict[str, Any], report: dict[str, Any]) -> None:
    from flaxbert.storage.workdir import write_json

    write_json(workdir.results(name), named)
    write_json(workdir.report(name), report)


def _merge(workdir: Workdir, named: dict[str, Any]) -> None:
    """Puts results into all_results.json, as the Trainer does; never makes one, which would mark an
    unfinished run as finished."""
    from flaxbert.storage.workdir import read_json, write_json

    if workdir.finished:
        stored = read_json(workdir.all_results)
        # Its epoch is that of the end of training.
        merged = {key: value for key, value in named.items() if key not in ("epoch", "step")}
        write_json(workdir.all_results, stored | merged)


def _write_predictions(path: PurePath, classifier: Classifier, logits: np.ndarray) -> None:
    from flaxbert.inference.answers import Numbered

    with store_for(path).replacing(path) as file:
        Numbered(file, classifier.labels).write(classifier.readable(logits))


def command() -> None:
    """Runs `python -m flaxbert.evaluate` on sys.argv."""
    cli.run(main, define_flags, __doc__, processes="one")


if __name__ == "__main__":
    command()
