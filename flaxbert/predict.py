"""python -m flaxbert.predict --model=DIR --input=FILE|- --output=FILE.jsonl

Labels texts with a trained folder. Input: .csv, .tsv, .jsonl or .txt (one text a line), or - for
lines on standard input. Output: .jsonl or .csv, one line per input in its order.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from flaxbert import cli
from flaxbert.config import Data
from flaxbert.errors import ConfigError

_OUTPUTS = (".jsonl", ".csv")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "A trained folder, such as RUN/model.", flag_values=values)
    flags.DEFINE_string("input", "", "Texts: a file, or - for standard input.", flag_values=values)
    flags.DEFINE_string("output", "", "Where the predictions go.", flag_values=values)
    flags.DEFINE_integer(
        "max_length", 0, "Tokens per text; 0 = the run's, else the model's.", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype", "float32", ("float32", "bfloat16"), "Compute dtype.", flag_values=values
    )
    cli.define_columns(values, label=False)


def main(values: flags.FlagValues, stop: cli.StopSignal) -> None:
    for name in ("model", "input", "output"):
        if not values[name].value:
            raise ConfigError(f"--{name} is missing. {(__doc__ or '').splitlines()[0]}")
    output = Path(values.output)
    if output.suffix.lower() not in _OUTPUTS:
        raise ConfigError(f"--output: expected a name ending in {' or '.join(_OUTPUTS)}.")
    if not output.parent.is_dir():
        raise ConfigError(f"--output: there is no directory {output.parent}.")

    from flaxbert.data.check import check_texts
    from flaxbert.data.files import read_inputs
    from flaxbert.inference import Predictor, run_config_of
    from flaxbert.storage.workdir import write_atomically

    run = run_config_of(values.model)
    data = cli.with_columns(run.data if run else Data(max_length=0), values)
    rows = read_inputs(values.input, text=data.text, text_pair=data.text_pair)
    empty = check_texts(rows) if len(rows) else 0
    max_length = values.max_length or data.max_length
    predictor = Predictor(values.model, dtype=values.dtype, max_length=max_length)
    logits = predictor.logits(rows.texts, rows.pairs, stop.check)
    records = predictor.task.readable(logits, predictor.labels.names)
    to_text = _csv if output.suffix.lower() == ".csv" else _jsonl
    write_atomically(output, to_text(records, predictor.labels).encode())
    note = f", {empty} of them empty" if empty else ""
    print(f"{len(records)} predictions in {output}{note}", file=sys.stderr)


def _jsonl(records: list[dict[str, Any]], labels: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _csv(records: list[dict[str, Any]], labels: Any) -> str:
    """One column per field; probabilities become one column per label, several labels JSON."""
    out = io.StringIO(newline="")
    first = {"single_label": ["label", "score"], "multi_label": ["labels"], "regression": ["value"]}
    fields = first[labels.problem]
    names = () if labels.problem == "regression" else labels.names
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, *(f"probability_{name}" for name in names)])
    for record in records:
        values = [record[field] for field in fields]
        values = [json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in values]
        writer.writerow([*values, *(record["probabilities"][name] for name in names)])
    return out.getvalue()


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
