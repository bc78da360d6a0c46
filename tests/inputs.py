"""Small real inputs: a tiny checkpoint with the real tokenizer, and real sentences as CSV files."""

from __future__ import annotations

import csv
from pathlib import Path


def write_tiny_bert(folder: Path, **sizes: int) -> Path:
    """Writes a random 2-layer encoder of width 32 with dropout and the embedded tokenizer.

    `sizes` are fields of its config.

    Like a pre-trained checkpoint it has no classifier: every run starts with a fresh head.
    """
    from flaxbert.data.tokenizer_files import files_in
    from flaxbert.heads import init_params
    from flaxbert.model.bert_config import BertConfig
    from flaxbert.storage.embedded import minilm_directory
    from flaxbert.weights.folder import write_model
    from flaxbert.weights.formats.safetensors_file import write_safetensors
    from flaxbert.weights.table import to_torch

    fields = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        **sizes,
    }
    config = BertConfig(**fields, initializer_range=0.2)
    params = init_params(config, 0)
    write_model(folder, config, params, files_in(minilm_directory()))
    tensors = to_torch(config, params)
    encoder = {name: array for name, array in tensors.items() if not name.startswith("classifier")}
    write_safetensors(folder / "model.safetensors", encoder)
    return folder


def write_reviews(folder: Path) -> dict[str, Path]:
    """Writes train.csv (96 rows), dev.csv (40) and test.csv (24), both labels in each."""
    from flaxbert.data.sources.movie_reviews import MovieReviews

    reviews = MovieReviews()
    train, validation = (reviews.read(part, {}) for part in ("train", "validation"))
    folder.mkdir(exist_ok=True)
    paths = {}
    for name, rows, start, count in (
        ("train", train, 3790, 96),
        ("dev", validation, 407, 40),
        ("test", validation, 415, 24),
    ):
        paths[name] = folder / f"{name}.csv"
        with paths[name].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index in range(start, start + count):
                writer.writerow([rows.columns["text"][index], rows.columns["label"][index]])
    return paths


def write_trained(
    folder: Path, names=("bad", "fair", "good"), problem="single_label", positions=64
) -> Path:
    """Writes a tiny classifier with named labels (random weights: names and order are the point)
    and the embedded tokenizer."""
    from flaxbert.data.tokenizer_files import files_in
    from flaxbert.heads import head_named, init_params
    from flaxbert.model.bert_config import BertConfig
    from flaxbert.storage.embedded import minilm_directory
    from flaxbert.weights.folder import write_model

    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
        initializer_range=0.4,
        id2label=tuple(names),
        problem_type=head_named(problem).problem_type,
    )
    write_model(folder, config, init_params(config, 0), files_in(minilm_directory()))
    return folder
