"""SST-2 with bert-base-uncased: the recipe of the published tables.

    python -m flaxbert.train --config=configs/sst2.py

Fetches model and data from the Hugging Face hub (about 440 MB) into its cache; HF_HOME,
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE have their usual effect. Without a hub name local folders:


    --config.model.path=FOLDER with config.json, model.safetensors and tokenizer files
    --config.data.dataset=FOLDER with sst2/train-00000-of-00001.parquet and validation

Published for this recipe (base-uncased, validation accuracy): 92.7 by the DistilBERT authors.
"""

from flaxbert.config import default_config


def get_config(arg: str = ""):
    """Returns the config; it takes no argument after the colon."""
    if arg:
        raise ValueError(f"configs/sst2.py takes no argument, got {arg!r}; see configs/glue.py")
    config = default_config()
    config.model.path = "google-bert/bert-base-uncased"  # hub id or folder
    config.data.task = "sst2"  # nyu-mll/glue: 67,349 training and 872 validation sentences
    config.data.max_length = 128  # tokens
    config.train.batch_size = 32  # sequences per update
    config.train.epochs = 3.0  # passes over the sentences
    config.optim.learning_rate = 2e-5  # peak; linear decay to 0
    config.optim.warmup = 0.0  # the published runs had none
    config.optim.weight_decay = 0.0  # the published runs had none

    config.optim.clip_norm = 1.0  # global gradient norm
    return config
