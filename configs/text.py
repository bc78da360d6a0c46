"""Your own files: one text column or two, and a label column.

    python -m flaxbert.train --config=configs/text.py \
        --config.data.train=train.csv --config.data.validation=dev.csv

CSV and TSV need a header line, JSONL one object a line. Labels may be strings or integers (one
label a row), a list in JSONL or a cell split by data.label_separator (several labels a row), or
numbers with decimals (regression).
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
    config.data.validation = ""  # a file, or "" with validation_fraction
    config.data.validation_fraction = 0.0  # e.g. 0.1 holds every tenth row out, by label
    config.data.text = "text"  # column of the text
    config.data.text_pair = ""  # column of the second text, for pairs
    config.data.label = "label"  # column of the target
    config.data.problem = "auto"  # decided from the label column, and printed
    return config
