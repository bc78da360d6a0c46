"""BertConfig: the fields of `config.json`; each is implemented, irrelevant or refused by name.

A field that would change the function and is not implemented (relative positions, decoders, pruned
heads) is refused, never silently dropped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flaxbert.errors import ModelFileError

# Names of transformers' ACT2FN: all but those with parameters of their own, and two of single
# models of other families.
ACTIVATIONS = (
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)
_MAX_LAYERS = 1000  # every layer is an object: a damaged file must not create a billion
_MAX_SIZE = 2**31 - 1  # indices are int32
_MAX_LABELS = 100_000  # as with layers: num_labels creates a name for each
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

# Fields with the values that this model implements; any other value is refused.
_ONLY_VALUE: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, [], None),
    "quantization_config": (None,),
}

_INSTEAD = {"quantization_config": " Name the model that was quantized, in its own precision."}

# Where sentence-transformers writes the activation of the outputs: since version 4, and before.
_CROSS_ENCODER, _OLD_CROSS_ENCODER = "sentence_transformers", "sbert_ce_default_activation_function"

# Fields that do not change the function: bookkeeping, generation, old training flags.
_NO_EFFECT = frozenset(
    (
        "architectures",
        "bos_token_id",
        "eos_token_id",
        "cls_token_id",
        "sep_token_id",
        "chunk_size_feed_forward",
        "directionality",
        "dtype",
        "torch_dtype",
        "torchscript",
        "finetuning_task",
        "gradient_checkpointing",
        "label2id",
        "language",
        "model_max_length",
        "name_or_path",
        "_name_or_path",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "return_dict",
        "tie_word_embeddings",
        "tie_encoder_decoder",
        "tokenizer_class",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
        "use_return_dict",
        "auto_map",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
    )
)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of `transformers.BertConfig`, with its defaults and meanings.

    `id2label` is a tuple in label-id order; it implies the number of labels.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"  # "gelu" is the exact erf form, as in PyTorch
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0  # its embedding gets no gradient, as in PyTorch
    classifier_dropout: float | None = None  # None = hidden_dropout_prob
    problem_type: str | None = None
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    architecture: str = "BertForSequenceClassification"  # transformers' class, with its head
    # What sentence-transformers' CrossEncoder applies to the outputs, by its import path.
    output_activation: str | None = None

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.id2label)}

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def head_dropout(self) -> float:
        """Rate between pooler and classifier."""
        own = self.classifier_dropout
        return self.hidden_dropout_prob if own is None else own

    @property
    def has_label_names(self) -> bool:
        """Whether the labels have names, not transformers' placeholders LABEL_n."""
        return any(name != f"LABEL_{i}" for i, name in enumerate(self.id2label))

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ModelFileError(
                f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}."
            )
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelFileError(f"{name}: expected a positive integer, got {value!r}.")
            if value > _MAX_SIZE:
                raise ModelFileError(f"{name}: expected at most {_MAX_SIZE}.")
        if self.num_hidden_layers > _MAX_LAYERS:
            raise ModelFileError(
                f"num_hidden_layers: expected at most {_MAX_LAYERS}, got {self.num_hidden_layers}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ModelFileError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "head_dropout"):
            rate = getattr(self, name)
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ModelFileError(f"{name}: expected a rate in [0, 1), got {rate!r}.")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= _MAX_SIZE:
                raise ModelFileError(f"{name}: expected a number >= 0, got {value!r}.")
        pad = self.pad_token_id
        if pad is not None and (not isinstance(pad, int) or not 0 <= pad < self.vocab_size):
            raise ModelFileError(
                f"pad_token_id {pad!r} is outside the vocabulary of {self.vocab_size}."
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ModelFileError(
                f"problem_type: expected one of {', '.join(PROBLEM_TYPES)}, "
                f"got {self.problem_type!r}."
            )
        activation = self.output_activation
        if activation is not None and not isinstance(activation, str):
            raise ModelFileError(
                f"activation_fn: expected the name of a class, got {activation!r}."
            )
        if len(self.id2label) > _MAX_LABELS:
            raise ModelFileError(f"id2label: expected at most {_MAX_LABELS} names.")
        if any("\ud800" <= letter <= "\udfff" for name in self.id2label for letter in name):
            raise ModelFileError(
                "id2label: a name has half of a surrogate pair, which cannot be encoded."
            )
        if not self.id2label or len(set(self.id2label)) != len(self.id2label):
            raise ModelFileError(f"id2label: expected distinct names, got {list(self.id2label)}.")

    @classmethod
    def from_dict(cls, values: object) -> tuple[BertConfig, list[str]]:
        """Reads the object of a `config.json` (Hugging Face or Google's bert_config.json).

        Returns the config and the names of unknown fields, which were not used.

        Raises:
          ModelFileError: a field has a value that this model does not implement.
        """
        if not isinstance(values, dict):
            raise ModelFileError(f"expected an object, got {type(values).__name__}.")
        for name, allowed in _ONLY_VALUE.items():
            if name in values and values[name] not in allowed:
                raise ModelFileError(
                    f"{name}={values[name]!r:.200} is not supported; flaxbert computes BERT "
                    f"encoders with {name}={allowed[0]!r}.{_INSTEAD.get(name, '')}"
                )
        known = {field.name for field in dataclasses.fields(cls)}
        chosen = {name: values[name] for name in known if name in values and name != "id2label"}
        chosen["id2label"] = _read_labels(values)
        chosen["output_activation"] = _read_activation(values)
        chosen.pop("architecture", None)
        stated = values.get("architectures")
        if isinstance(stated, (list, tuple)) and len(stated) == 1 and isinstance(stated[0], str):
            # Flax and TensorFlow wrote the names of their own classes, with the same heads.
            chosen["architecture"] = stated[0].removeprefix("Flax").removeprefix("TF")
        config = cls(**chosen)
        used = known | set(_ONLY_VALUE) | _NO_EFFECT | {"num_labels", "_num_labels"}
        used |= {_CROSS_ENCODER, _OLD_CROSS_ENCODER}
        return config, sorted(set(values) - used)

    def to_dict(self) -> dict[str, Any]:
        """Returns the object for `config.json`, as transformers 5 reads it."""
        values = dataclasses.asdict(self)
        values["id2label"] = {str(i): name for i, name in enumerate(self.id2label)}
        values["label2id"] = self.label2id
        values["architectures"] = [values.pop("architecture")]
        values["model_type"] = "bert"
        values["dtype"] = "float32"
        if values["problem_type"] is None:
            del values["problem_type"]
        if activation := values.pop("output_activation"):
            values[_CROSS_ENCODER] = {"activation_fn": activation}
            values[_OLD_CROSS_ENCODER] = activation
        return values


def _read_activation(values: dict[str, Any]) -> Any:
    new = values.get(_CROSS_ENCODER)
    if isinstance(new, dict) and new.get("activation_fn") is not None:
        return new["activation_fn"]
    return values.get(_OLD_CROSS_ENCODER)


def _read_labels(values: dict[str, Any]) -> tuple[str, ...]:
    id2label = values.get("id2label")
    if id2label is None:
        stated = (values.get(name) for name in ("num_labels", "_num_labels"))
        count = next((number for number in stated if number is not None), 2)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ModelFileError(f"num_labels: expected a positive integer, got {count!r}.")
        if count > _MAX_LABELS:
            raise ModelFileError(f"num_labels: expected at most {_MAX_LABELS}, got {count}.")
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        by_id = {int(key): str(name) for key, name in id2label.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelFileError(f"id2label is not a map from ids: {id2label!r}.") from error
    # Compared with the number of entries: "1" and "01" are two keys but one id.
    if sorted(by_id) != list(range(len(id2label))):
        raise ModelFileError(
            f"id2label must number its names 0..n-1, got ids {', '.join(map(str, id2label))}."
        )
    return tuple(by_id[i] for i in range(len(by_id)))
