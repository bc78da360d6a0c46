"""Your own files: one text column or two, and a label column.

    python -m flaxbert.train --config=configs/text.py \
        --config.data.train=train.csv --config.data.validation=dev.csv

CSV and TSV need a header line, JSONL one object per line; all may be .gz. Parquet is read too.
Labels may be strings or integers (one label per row), a list in JSONL or Parquet or a cell split by
data.label_separator (several labels per row), or numbers with decimals (regression). See
docs/own_data.md; for word tags see configs/ner.py.

"""

from flaxbert.config import default_config


def get_config(arg: str = ""):
    """Returns the config for own files; it takes no argument after the colon."""
    if arg:
        raise ValueError(f"configs/text.py takes no argument, got {arg!r}")
    config = default_config()
    config.model.path = "embedded:minilm"  # any BERT folder or hub id
    config.data.task = "text"  # read the files named below
    config.data.train = ""  # required: --config.data.train=FILE
    config.data.validation = ""  # a file; "" = none, or validation_fraction
    config.data.validation_fraction = 0.0  # 0.1 = hold out a tenth of the rows, by label
    config.data.text = "text"  # column of the text
    config.data.text_pair = ""  # column of the second text, for pairs
    config.data.label = "label"  # column of the target
    config.data.problem = "auto"  # auto = decided from the label column and printed
    config.data.on_bad_row = "error"  # skip = leave out rows without usable text or label
    config.data.on_empty = "keep"  # skip or error for rows whose text is empty
    config.data.on_leak = "warn"  # error = refuse validation texts that are also in training
    config.data.on_single_class = "error"  # warn = allow one label if the model has more
    return config
