"""python -m flaxbert.predict --model=DIR|--workdir=RUN  --input=FILE|-|--split=test  --output=FILE

Labels texts with a trained model. Input: a file of rows, .txt (one text a line), - for lines on
standard input, or a split of the run. Output: .jsonl, .csv, .conll, or - for JSON lines on standard
output; one line per input in its order. A split also gives RUN/predict_results_<task>.txt.
"""

from __future__ import annotations

from flaxbert.shell import signals

if __name__ == "__main__":
    signals.install()  # before the slower imports

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from flaxbert.config import Config, Data
from flaxbert.data import formats
from flaxbert.errors import ConfigError, DataError
from flaxbert.shell import cli
from flaxbert.storage.store import store_for

if TYPE_CHECKING:
    from flaxbert.data.rows import Rows
    from flaxbert.inference.predictor import Predictor
    from flaxbert.storage.workdir import Workdir

_SIZE = 8192  # rows in memory at once
_PROMPT = 256  # the same for lines on standard input


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "A trained folder or hub id.", flag_values=values)
    flags.DEFINE_string("workdir", "", "A run: its best model.", flag_values=values)
    kinds = f"Texts: a file, {formats.listed()}; or - for standard input."
    flags.DEFINE_string("input", "", kinds, flag_values=values)
    cli.define_split(values, None)
    flags.DEFINE_string("output", "", "Where the predictions go.", flag_values=values)
    flags.DEFINE_integer(
        "top_k",
        -1,
        "Probabilities of the N best labels; 0 = of all; -1 = of all up to 200, else the 10 best.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "on_bad_row",
        "error",
        ("error", "skip"),
        "A row of --input without a usable text: stop, or give an empty answer in its place.",
        flag_values=values,
    )
    cli.define_inference(values)
    cli.define_columns(values, label=False)


def main(values: flags.FlagValues, stop: cli.StopSignal) -> None:
    if bool(values.model) == bool(values.workdir):
        raise ConfigError("give either --model=DIR or --workdir=RUN.")
    if bool(values.input) == bool(values.split):
        raise ConfigError("give either --input=FILE (or - for lines) or --split of a --workdir.")
    if values.split and not values.workdir:
        raise ConfigError(f"--split={values.split} needs --workdir=RUN: a folder has no data.")
    if values.split and values["on_bad_row"].present:
        raise ConfigError("--on_bad_row is for --input; a --split has the run's data.on_bad_row.")
    if not values.output and not values.split:
        raise ConfigError("--output is missing: a file ending in .jsonl, .csv or .conll, or -.")

    from flaxbert.data import sources
    from flaxbert.inference import answers
    from flaxbert.inference.predictor import trained
    from flaxbert.inference.predictors import predictor_for
    from flaxbert.storage import compiled

    if values.output and values.output != "-":
        answers.check_output(values.output, values.input)
    compiled.keep()
    model, config, facts, workdir = trained(values.workdir, values.model)
    data = cli.with_columns(sources.with_task(config.data), values)

    # Read the first rows before the model is loaded, so that a bad file is reported at once.
    chunks = _file_chunks(data, values) if values.input else iter(())
    first = next(chunks, None)
    predictor = predictor_for(model).from_pretrained(
        model,
        top_k=values.top_k,
        **cli.inference_options(values, facts.get("dtype", "float32")),
    )
    for note in predictor.notes:
        cli.say(f"{model}: {note}")
    for line in predictor.tokenizer.told(pairs=bool(data.text_pair)):
        cli.say(line)
    chunks = itertools.chain([first] if first is not None else [], chunks)
    parts: dict[str, Iterator[Rows]] = {"": _checked(chunks, predictor, values.on_bad_row)}
    if values.split:
        revision = facts.get("dataset_revision", "")
        config = dataclasses.replace(config, data=data)
        parts = _split_chunks(config, predictor, values.split, revision)
    if len(parts) > 1 and values.output:
        raise ConfigError(
            f"--output is one file, and --split={values.split} has {len(parts)} sets. Leave "
            "--output out, or name a set as the data set names it, such as test_matched."
        )
    for suffix, part in parts.items():
        with contextlib.ExitStack() as stack:
            writers = _open_writers(stack, values, predictor, workdir, config, suffix)
            _predict(predictor, part, writers)


def _predict(predictor: Predictor, chunks: Iterator[Rows], writers: dict[str, Any]) -> None:
    from flaxbert.data.report import warn_of_unknown
    from flaxbert.data.rows import list_lines
    from flaxbert.shell.progress_bar import progress_bar

    count = empty = long = ordinary = 0
    unknown = 0.0
    skipped: dict[str, list[int]] = {}
    about_file: dict[str, None] = {}  # in order, each once
    with progress_bar(unit="windows" if predictor.long == "window" else "rows") as bar:
        for rows in chunks:
            about_file |= dict.fromkeys(f"{rows.source}: {note}" for note in rows.notes)
            records = []
            if len(rows):
                empty += len(predictor.head.empty(rows))
                examples = predictor.encode_rows(rows)
                records = predictor.records(rows, examples, predictor.answers(examples, bar.update))
                tokens = examples.tokens
                long += tokens.truncated
                ordinary += tokens.ordinary
                unknown += tokens.unknown_share * tokens.ordinary
            records = _in_place(records, rows, predictor)
            for writer in writers.values():
                writer.write(records)
            count += len(records)
            for why, lines in rows.skipped.items():
                skipped.setdefault(why, []).extend(lines)
    for line in about_file:
        cli.say(line)
    notes = [f"{count} predictions in {', '.join(writers)}"]
    for why, lines in skipped.items():
        notes.append(f"{len(lines)} of them empty: {why} ({list_lines(lines, 5)})")
    if empty:
        notes.append(f"{empty} of them of an empty text")
    if long:
        how = {"truncate": "cut", "head_tail": "cut in the middle", "window": "read in windows"}
        notes.append(f"{long} of texts over {predictor.max_length} tokens ({how[predictor.long]})")
    for line in warn_of_unknown(unknown / max(1, ordinary)):
        cli.say(line)
    cli.say("; ".join(notes))


def _in_place(
    records: list[dict[str, Any]], rows: Rows, predictor: Predictor
) -> list[dict[str, Any]]:
    """Returns the records with an empty one for each row of a file that was skipped."""
    if not rows.skipped:
        return records
    nothing = predictor.head.no_answer(predictor.labels.names)
    placed = dict(zip(rows.lines, records, strict=True))
    placed |= {line: nothing for lines in rows.skipped.values() for line in lines}
    return [placed[line] for line in sorted(placed)]


def _checked(chunks: Iterator[Rows], predictor: Predictor, on_bad_row: str) -> Iterator[Rows]:
    """Yields the usable rows of each part. Every row gets an answer, even an empty text, which
    training may skip."""
    config = Config(data=Data(on_bad_row=on_bad_row))
    with _advice():
        for rows in chunks:
            yield predictor.head.usable(rows, config)


@contextlib.contextmanager
def _advice() -> Iterator[None]:
    """Names the flag with which a file is read in spite of a bad row."""
    from flaxbert.data.bad_rows import BadRowError

    try:
        yield
    except BadRowError as error:
        flag = "Or set --on_bad_row=skip for an empty answer in its place."
        raise DataError(f"{error} {flag}") from error


def _file_chunks(data: Data, values: Any) -> Iterator[Rows]:
    from flaxbert.data.sources.files import has_columns, read_chunks

    path = values.input
    if not has_columns(path):
        for name in ("text", "text_pair"):
            if values[name].value:
                raise ConfigError(f"--{name} has no effect: {path} has one text a line.")
        if data.text_pair:
            raise ConfigError(
                f"--input={path} has one text a line, but the model was trained on pairs "
                f"({data.text}, {data.text_pair}). Give a file with columns, such as .csv."
            )
    # Somebody may be waiting for answers to standard input.
    size = _PROMPT if path == "-" else _SIZE
    columns = {"text": data.text, "text_pair": data.text_pair}
    with _advice():
        yield from read_chunks(path, columns, size=size, on_bad_row=values.on_bad_row)


def _split_chunks(
    config: Config, predictor: Predictor, split: str, revision: str
) -> dict[str, Iterator[Rows]]:
    """Returns the rows of a split in parts, {suffix: parts}; a test file may have no labels."""
    from flaxbert.data.splits import read_split

    data = config.data
    if split not in ("train", "validation"):
        data = dataclasses.replace(data, label="", on_empty="keep")
    config = dataclasses.replace(config, data=data)
    read = read_split(config, predictor.head, predictor.labels, split, revision)

    def parts(rows: Rows) -> Iterator[Rows]:
        for start in range(0, len(rows), _SIZE):
            yield rows.take(range(start, min(start + _SIZE, len(rows))), "")

    return {suffix: parts(rows) for suffix, rows in read.items()}


def _open_writers(
    stack: contextlib.ExitStack,
    values: Any,
    predictor: Predictor,
    workdir: Workdir | None,
    config: Config,
    suffix: str,
) -> dict[str, Any]:
    """Returns {name for the user: writer}."""
    from flaxbert.inference import answers
    from flaxbert.run.result_names import predictions_name

    writers: dict[str, Any] = {}
    labels = predictor.labels
    if values.output == "-":
        file = stack.enter_context(answers.standard_output())
        writers["standard output"] = answers.JsonLines(file, labels)
    elif values.output:
        output = Path(values.output).resolve()  # a link keeps pointing to its file
        file = stack.enter_context(store_for(values.output).replacing(output))
        make = answers.writer_for(values.output)
        writers[values.output] = make(file, labels, predictor.top_k)
    if values.split and workdir is not None:
        path = workdir.root / predictions_name(config.data.task, values.split, suffix)
        file = stack.enter_context(workdir.store.replacing(path))
        writers[str(path)] = answers.Numbered(file, labels)
    return writers


def command() -> None:
    """Runs `python -m flaxbert.predict` on sys.argv."""
    cli.run(main, define_flags, __doc__, processes="one")


if __name__ == "__main__":
    command()
