"""Named entities, or any other tag for each word, from your own files.

    python -m flaxbert.train --config=configs/ner.py --workdir=runs/ner \\
        --config.data.train=train.conll --config.data.validation=dev.conll

Files: .conll (a word and its tag per line, a blank line between sentences), .jsonl or .parquet with
lists of words and tags. The tag scheme (IOB1, IOB2, BIOES, BILOU, BMES, IO or plain tags) is
detected from the training tags; config.head.token.scheme sets it.
"""

from flaxbert.config import default_config


def get_config():
    config = default_config()
    config.head.name = "token"  # a tag for each word
    config.data.text = "tokens"  # column with the list of words
    config.data.label = "tags"  # column with the list of tags; ner_tags in many data sets
    config.data.max_length = 128  # tokens per sequence; longer rows are read in windows
    config.train.batch_size = 32  # sequences per update

    config.train.epochs = 5.0  # passes over the training rows
    config.optim.learning_rate = 1e-4  # small models; 3e-5 to 5e-5 for bert-base
    return config
