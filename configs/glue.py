"""A GLUE task with bert-base-cased: the recipe of the published tables.

    python -m flaxbert.train --config=configs/glue.py:mrpc

TASK is cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli. The task sets columns, labels, splits
and the metric that picks the best model (flaxbert/data/sources/glue.py). The model and
`nyu-mll/glue` come from the Hugging Face hub; without a hub name local folders:

    --config.model.path=FOLDER with config.json, model.safetensors and tokenizer files
    --config.data.dataset=FOLDER with mrpc/train-00000-of-00001.parquet and so on
"""

from flaxbert.config import default_config

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

# Five passes over the two smallest, as in the published tables.
EPOCHS = {"mrpc": 5.0, "wnli": 5.0}


def get_config(arg: str = ""):
    """Returns the config of the task named after the colon."""
    if arg == "ax":
        raise ValueError(
            "ax has no training data: train configs/glue.py:mnli, then run flaxbert.predict "
            "--workdir=RUN --split=ax"
        )
    if arg not in TASKS:
        raise ValueError(
            f"name a task after the colon, --config=configs/glue.py:TASK, one of "
            f"{', '.join(TASKS)}; got {arg!r}"
        )
    config = default_config()
    config.model.path = "google-bert/bert-base-cased"  # hub id or folder
    config.data.task = arg  # nyu-mll/glue
    config.data.max_length = 128  # tokens
    config.train.batch_size = 32  # sequences per update
    config.train.epochs = EPOCHS.get(arg, 3.0)  # passes over the training data
    config.optim.learning_rate = 2e-5  # peak; linear decay to 0
    config.optim.warmup = 0.0  # the published runs had none
    config.optim.weight_decay = 0.0  # the published runs had none

    config.optim.clip_norm = 1.0  # global gradient norm
    return config
