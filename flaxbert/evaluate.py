"""python -m flaxbert.evaluate --workdir=RUN | --model=DIR  [--split=validation | --data=FILE]

Computes loss and metrics on every example of a run's split, or of a labelled file: JSON on standard
output, a table of scores per label on standard error. For a split of a run it also writes
eval_results.json (<split>_results.json) and eval_report.json to the run's folder; with --output=DIR
these files and the predictions go there instead.
"""

from __future__ import annotations

from flaxbert.shell import signals

if __name__ == "__main__":
    signals.install()  # before the slower imports

import dataclasses
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from absl import flags

from flaxbert.config import Config
from flaxbert.data import formats
from flaxbert.errors import ConfigError, DataError
from flaxbert.shell import cli
from flaxbert.storage.store import is_url, store_for, url_refusal

if TYPE_CHECKING:
    import numpy as np

    from flaxbert.data.batches import Examples
    from flaxbert.data.splits import Split
    from flaxbert.inference.predictor import Predictor
    from flaxbert.storage.workdir import Workdir


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "A run: its best model, its data.", flag_values=values)
    flags.DEFINE_string("model", "", "A model folder; needs --data.", flag_values=values)
    cli.define_split(values, "validation")
    kinds = f"A labelled file: {formats.listed()}."
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
    if is_url(values.output) or url_refusal(values.output):
        raise ConfigError(f"--output: {values.output}: name a local directory.")
    if values.output and Path(values.output).exists() and not Path(values.output).is_dir():
        raise ConfigError(f"--output: {values.output} is a file; name a directory.")

    from flaxbert.inference.predictor import trained
    from flaxbert.inference.predictors import predictor_for
    from flaxbert.run.result_names import merged, named_for, predictions_name
    from flaxbert.storage import compiled
    from flaxbert.storage.workdir import Workdir, to_json

    compiled.keep()
    model, config, facts, workdir = trained(values.workdir, values.model)
    predictor = predictor_for(model).from_pretrained(
        model,
        packing=config.data.packing,
        **cli.inference_options(values, facts.get("dtype", "float32")),
    )
    for note in predictor.notes:
        cli.say(f"{model}: {note}")
    splits = _read(values, config, predictor, facts)
    computed = {suffix: _evaluate(predictor, s, config) for suffix, s in splits.items()}
    head, names = predictor.head, predictor.labels.names
    report: dict[str, Any] = {}
    for suffix, (answers, examples, _) in computed.items():
        told = head.report(answers, examples, names)
        report |= {suffix: told} if suffix else told
        for line in ([f"{suffix}:"] if suffix else []) + head.report_lines(told):
            cli.say(line)

    # Results of a file get the names of the validation split.
    name = "validation" if values.data else values.split
    named = named_for(name, merged({suffix: found for suffix, (*_, found) in computed.items()}))
    if values.output:
        Path(values.output).mkdir(parents=True, exist_ok=True)
        written = Workdir(Path(values.output))
        _write(written, name, named, report)
        for suffix, (answers, examples, _) in computed.items():
            task = Path(values.data).stem if values.data else config.data.task
            path = predictions_name(task, "test" if values.data else name, suffix)
            records = predictor.records(splits[suffix].rows, examples, answers)
            _write_predictions(written.root / path, predictor, records)
    # Not for the training split: training wrote train_results.json.
    elif workdir and not values.data and name != "train":
        named = _kept(workdir, name) | named
        _write(workdir, name, named, report)
        _merge(workdir, named)
    print(to_json(named))


def _read(
    values: Any, config: Config, predictor: Predictor, facts: dict[str, Any]
) -> dict[str, Split]:
    """Returns the checked examples, encoded as in the run: {suffix: split}."""
    from flaxbert.data import sources, splits
    from flaxbert.data.tokenize import resolve_max_length

    data = cli.with_columns(sources.with_task(config.data), values)
    config = dataclasses.replace(config, data=data)
    for line in predictor.tokenizer.told(pairs=bool(data.text_pair)):
        cli.say(line)
    labels, head = predictor.labels, predictor.head
    if values.data:
        name = Path(values.data).stem
        read = {"": splits.read_file(config, head, values.data)}
    else:
        name, revision = values.split, facts.get("dataset_revision", "")
        read = splits.read_split(config, head, labels, name, revision)
    positions = predictor.model.config.max_position_embeddings
    max_length = resolve_max_length(data.max_length, positions)
    recorded = {} if values.data else facts.get("training" if name == "train" else name, {})
    made = {}
    for suffix, rows in read.items():
        told = f"{name} {suffix}".rstrip()
        made[suffix] = head.split(told, rows, labels, predictor.tokenizer, max_length, config)
        if recorded.get(suffix) not in (None, made[suffix].examples.digest):
            raise DataError(
                f"--split={name}: the data differ from those that {values.workdir} was trained "
                "with. Restore them, or name a file by --data."
            )
        for line in made[suffix].lines:
            cli.say(line)
    return made


def _evaluate(
    predictor: Predictor, split: Split, config: Config
) -> tuple[np.ndarray, Examples, dict[str, Any]]:
    """Returns logits, their examples, and results: loss, metrics, speed, number of skipped rows."""
    from flaxbert.data.class_weights import weights_for
    from flaxbert.data.tokenize import resolve_max_length
    from flaxbert.loop.evaluation import Stopwatch, scores
    from flaxbert.shell.progress_bar import progress_bar

    positions = predictor.model.config.max_position_embeddings
    examples, windows = split.examples, ""
    names = predictor.labels.names
    length = resolve_max_length(config.data.max_length, positions)
    as_trained = (predictor.head.long[0], length, -1)
    if (predictor.long, predictor.max_length, predictor.stride) != as_trained:
        examples = predictor.encode_rows(split.rows)
        examples = predictor.head.with_targets(examples, split.targets, names)
        tokens = examples.tokens
        windows = f" in {len(tokens)} windows" if tokens.owners is not None else ""
        how = {"truncate": "cut", "head_tail": "cut in the middle", "window": "read"}
        cli.say(
            f"{tokens.truncated} texts over {predictor.max_length} tokens "
            f"({how[predictor.long]}{windows})"
        )
    with progress_bar(len(examples), "windows" if windows else "rows") as bar:
        stopwatch = Stopwatch(bar.update)
        answers = predictor.answers(examples, stopwatch)
        weights = weights_for(config.loss.class_weights, predictor.labels)
        loss = dataclasses.replace(config.loss, class_weights=weights)
        results = scores(predictor.head, answers, examples, names, loss)
        skipped = {"samples_skipped": sum(map(len, split.rows.skipped.values()))}
        return answers, examples, results | stopwatch.results(examples.count) | skipped


def _kept(workdir: Workdir, name: str) -> dict[str, Any]:
    """Returns epoch and step of the best model from the run's own results."""
    from flaxbert.storage.workdir import read_json

    path = workdir.results(name)
    stored = read_json(path) if workdir.store.is_file(path) else {}
    return {key: stored[key] for key in ("epoch", "step") if key in stored}


def _write(workdir: Workdir, name: str, named: dict[str, Any], report: dict[str, Any]) -> None:
    from flaxbert.storage.workdir import write_json

    write_json(workdir.results(name), named)
    write_json(workdir.report(name), report)


def _merge(workdir: Workdir, named: dict[str, Any]) -> None:
    """Merges results into all_results.json, as the Trainer does.

    It never creates the file, which would mark an unfinished run as finished.
    """
    from flaxbert.storage.workdir import read_json, write_json

    if workdir.finished:
        stored = read_json(workdir.all_results)
        # Its epoch is that of the end of training.
        merged = {key: value for key, value in named.items() if key not in ("epoch", "step")}
        write_json(workdir.all_results, stored | merged)


def _write_predictions(path: PurePath, predictor: Predictor, records: list[dict[str, Any]]) -> None:
    from flaxbert.inference.answers import Numbered

    with store_for(path).replacing(path) as file:
        Numbered(file, predictor.labels).write(records)


def command() -> None:
    """Runs `python -m flaxbert.evaluate` on sys.argv."""
    cli.run(main, define_flags, __doc__, processes="one")


if __name__ == "__main__":
    command()
