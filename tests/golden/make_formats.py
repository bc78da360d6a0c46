"""Writes tests/golden/formats: small weight files, each by the library whose format it is.

    python tests/golden/make_formats.py flax       transformers 4.57.6, flax 0.7.0, jax 0.4.13
    python tests/golden/make_formats.py pytorch    torch 2.9.1, transformers 4.57.6
    python tests/golden/make_formats.py tf1        tensorflow 2.21

The first two share an environment of Python 3.10: `pip install transformers==4.57.6 jax==0.4.13
jaxlib==0.4.13 flax==0.7.0 optax==0.1.4 chex==0.1.7 "orbax-checkpoint<0.3" "ml_dtypes<0.4"
"numpy<2" "scipy<1.13" torch==2.9.1`; the third is one of Python 3.11 with `tensorflow-cpu`. Neither
needs this package. The values are those of values.py.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
from values import CONFIG, DEEP, LABELS, golden

ROOT = Path(__file__).parent / "formats"


def _folder(name: str) -> Path:
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _config(values: dict):
    from transformers import BertConfig

    names = dict(enumerate(LABELS))
    return BertConfig(**values, id2label=names, label2id={v: k for k, v in names.items()})


# Flax


def _flax_params(model) -> dict:
    """Returns the model's tree with the golden values in it."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    flat = {}
    for path, leaf in flatten_dict(model.params).items():
        *parents, last = path
        torch_last = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(last, last)
        name = ".".join([*parents, torch_last])
        if not name.startswith(("bert.", "classifier.", "cls.")):
            name = f"bert.{name}"
        shape = leaf.shape[::-1] if last == "kernel" else leaf.shape
        value = golden(name, shape)
        flat[path] = value.T.copy() if last == "kernel" else value
    return unflatten_dict(flat)


def flax() -> None:
    import jax
    from flax.serialization import to_bytes
    from transformers import (
        FlaxBertForPreTraining,
        FlaxBertForSequenceClassification,
        FlaxBertModel,
    )

    for name, kind, values, options in (
        ("flax", FlaxBertForSequenceClassification, DEEP, {}),
        ("flax-base", FlaxBertModel, CONFIG, {}),
        ("flax-pretraining", FlaxBertForPreTraining, CONFIG, {}),
        ("flax-shards", FlaxBertForSequenceClassification, CONFIG, {"max_shard_size": "3KB"}),
        ("flax-bfloat16", FlaxBertForSequenceClassification, CONFIG, {}),
        ("flax-float16", FlaxBertForSequenceClassification, CONFIG, {}),
    ):
        model = kind(_config(values))
        params = _flax_params(model)
        if name.endswith("16"):
            cast = model.to_bf16 if name.endswith("bfloat16") else model.to_fp16
            params = cast(jax.tree_util.tree_map(jax.numpy.asarray, params))  # not of NumPy arrays
        model.save_pretrained(_folder(name), params=params, **options)
    model = FlaxBertForSequenceClassification(_config(CONFIG))
    state = {"params": _flax_params(model), "step": 7, "opt_state": {"0": {"count": np.int32(7)}}}
    folder = _folder("flax-train-state")
    model.config.save_pretrained(folder)
    (folder / "flax_model.msgpack").write_bytes(to_bytes(state))


# PyTorch


def pytorch() -> None:
    import torch
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(_config(CONFIG))
    model.load_state_dict(
        {name: torch.tensor(golden(name, v.shape)) for name, v in model.state_dict().items()}
    )
    state = model.state_dict()

    def save(name: str, value, **options) -> None:
        folder = _folder(name)
        model.config.save_pretrained(folder)
        torch.save(value, folder / "pytorch_model.bin", **options)

    old = {"_use_new_zipfile_serialization": False}
    save("pytorch", state)
    save("pytorch-legacy", state, **old)
    for dtype in ("float16", "bfloat16"):
        cast = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
        save(f"pytorch-{dtype}", cast)
        save(f"pytorch-legacy-{dtype}", cast, **old)

    # One storage for all, some of it transposed: what a state dict of views looks like.
    def turned(value):
        return value.permute(*reversed(range(value.ndim)))

    flat = torch.cat([turned(value).reshape(-1) for value in state.values()])
    views, start = {}, 0
    for name, value in state.items():
        part = flat[start : start + value.numel()]
        views[name] = turned(part.view(turned(value).shape))
        start += value.numel()
    save("pytorch-views", views)
    save("pytorch-legacy-views", views, **old)
    wrapped = {f"model.module.{name}": torch.nn.Parameter(value) for name, value in state.items()}
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(3), "step": 5}},
        "param_groups": [{"lr": 0.1}],
    }
    save("pytorch-lightning", {"epoch": 3, "state_dict": wrapped, "optimizer_states": [optimizer]})
    save(
        "pytorch-lightning-legacy", {"state_dict": wrapped, "optimizer_states": [optimizer]}, **old
    )
    model.save_pretrained(_folder("pytorch-shards"), safe_serialization=False, max_shard_size="3KB")


# TensorFlow


def _tf1_variables(heads: str) -> dict[str, tuple[str, bool, tuple[int, ...]]]:
    """Returns {TF1 name: (PyTorch name, transposed, PyTorch's shape)}."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    found = {}

    def add(name: str, torch_name: str, shape: tuple[int, ...], transposed: bool = False) -> None:
        found[name] = (torch_name, transposed, shape)

    def norm(prefix: str) -> None:
        torch_prefix = re.sub(r"layer_(\d+)", r"layer.\1", prefix).replace("/", ".")
        add(f"{prefix}/LayerNorm/gamma", f"{torch_prefix}.LayerNorm.weight", (hidden,))
        add(f"{prefix}/LayerNorm/beta", f"{torch_prefix}.LayerNorm.bias", (hidden,))

    def dense(prefix: str, inputs: int, outputs: int) -> None:
        torch_prefix = re.sub(r"layer_(\d+)", r"layer.\1", prefix).replace("/", ".")
        add(f"{prefix}/kernel", f"{torch_prefix}.weight", (outputs, inputs), True)
        add(f"{prefix}/bias", f"{torch_prefix}.bias", (outputs,))

    for name, rows in (
        ("word_embeddings", CONFIG["vocab_size"]),
        ("position_embeddings", CONFIG["max_position_embeddings"]),
        ("token_type_embeddings", CONFIG["type_vocab_size"]),
    ):
        add(f"bert/embeddings/{name}", f"bert.embeddings.{name}.weight", (rows, hidden))
    norm("bert/embeddings")
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"bert/encoder/layer_{layer}"
        for name in ("query", "key", "value"):
            dense(f"{prefix}/attention/self/{name}", hidden, hidden)
        dense(f"{prefix}/attention/output/dense", hidden, hidden)
        norm(f"{prefix}/attention/output")
        dense(f"{prefix}/intermediate/dense", hidden, inner)
        dense(f"{prefix}/output/dense", inner, hidden)
        norm(f"{prefix}/output")
    dense("bert/pooler/dense", hidden, hidden)
    if heads == "classifier":
        add("output_weights", "classifier.weight", (2, hidden))
        add("output_bias", "classifier.bias", (2,))
    else:
        dense("cls/predictions/transform/dense", hidden, hidden)
        norm("cls/predictions/transform")
        add("cls/predictions/output_bias", "cls.predictions.bias", (CONFIG["vocab_size"],))
        add("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", (2, hidden))
        add("cls/seq_relationship/output_bias", "cls.seq_relationship.bias", (2,))
    return found


def tf1() -> None:
    import json

    import tensorflow as tf

    v1 = tf.compat.v1
    google = {name: value for name, value in CONFIG.items()} | {"hidden_act": "gelu"}

    def save(name: str, stem: str, heads: str, slots: bool, shards: int = 1, **options) -> None:
        folder = _folder(name)
        (folder / "bert_config.json").write_text(json.dumps(google, indent=1))
        with tf.Graph().as_default():
            for index, (variable, (torch_name, transposed, shape)) in enumerate(
                _tf1_variables(heads).items()
            ):
                value = golden(torch_name, shape)
                with tf.device(f"/cpu:{index % shards}"):
                    value = value.T if transposed else value
                    v1.get_variable(variable, initializer=tf.constant(value))
                    if slots:
                        for slot in ("adam_m", "adam_v"):
                            v1.get_variable(f"{variable}/{slot}", initializer=tf.zeros(value.shape))
            if slots:
                v1.get_variable("global_step", initializer=tf.constant(9, tf.int64))
            config = v1.ConfigProto(device_count={"CPU": shards})
            with v1.Session(config=config) as session:
                session.run(v1.global_variables_initializer())
                saver = v1.train.Saver(sharded=shards > 1, **options)
                saver.save(session, str(folder / stem), write_meta_graph=False, write_state=False)

    save("tf1", "bert_model.ckpt", "pretraining", slots=False)
    save("tf1-classifier", "model.ckpt-9", "classifier", slots=True)
    save("tf1-shards", "bert_model.ckpt", "pretraining", slots=False, shards=3)
    save("tf1-v1", "bert_model.ckpt", "classifier", False, write_version=v1.train.SaverDef.V1)
    folder = _folder("tf2")
    (folder / "bert_config.json").write_text(json.dumps(google, indent=1))
    checkpoint = tf.train.Checkpoint(kernel=tf.Variable([1.0, 2.0]))
    checkpoint.write(str(folder / "bert_model.ckpt"))


if __name__ == "__main__":
    {"flax": flax, "pytorch": pytorch, "tf1": tf1}[sys.argv[1]]()
