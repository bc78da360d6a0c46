"""BertConfig: every field is honoured or refused by name, in each dialect of config.json."""

from __future__ import annotations

import dataclasses
import json

import pytest

from flaxbert.errors import ModelFileError
from flaxbert.model.bert_config import ACTIVATIONS, PROBLEM_TYPES, BertConfig

GOOGLE = {  # bert_config.json of google-research/bert: no model_type, no layer_norm_eps
    "attention_probs_dropout_prob": 0.1,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "type_vocab_size": 2,
    "vocab_size": 30522,
}

# A value of every field that is not its default.
OTHER = BertConfig(
    vocab_size=99,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=17,
    hidden_act="gelu_new",
    hidden_dropout_prob=0.2,
    attention_probs_dropout_prob=0.3,
    max_position_embeddings=31,
    type_vocab_size=5,
    initializer_range=0.5,
    layer_norm_eps=1e-5,
    pad_token_id=7,
    classifier_dropout=0.4,
    problem_type="multi_label_classification",
    id2label=("bad", "so so", "good"),
    architecture="BertForTokenClassification",
    output_activation="torch.nn.modules.linear.Identity",
)
SPELT = {"architecture": "architectures", "output_activation": "sentence_transformers"}


def _refused(**values) -> str:
    with pytest.raises(ModelFileError) as caught:
        BertConfig.from_dict(values)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_every_field_is_tried():
    for field in dataclasses.fields(BertConfig):
        assert getattr(OTHER, field.name) != field.default, field.name


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(BertConfig)])
def test_each_field_is_honoured_alone(field):
    # Sizes divide each other in both configs, so that one field may differ alone.
    base = BertConfig(hidden_size=24, num_attention_heads=2)
    name = SPELT.get(field, field)
    values = base.to_dict() | {name: OTHER.to_dict()[name]}
    config, unknown = BertConfig.from_dict(values)
    assert config == dataclasses.replace(base, **{field: getattr(OTHER, field)})
    assert not unknown


@pytest.mark.parametrize("config", [BertConfig(), OTHER], ids=["default", "other"])
def test_to_dict_and_back_is_the_identity(config):
    again, unknown = BertConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert not unknown


@pytest.mark.parametrize("config", [BertConfig(), OTHER], ids=["default", "other"])
def test_transformers_reads_the_same_fields(config, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the reader of these files")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    theirs = transformers.BertConfig.from_pretrained(tmp_path)
    for field in dataclasses.fields(BertConfig):
        if field.name not in ("id2label", *SPELT):
            assert getattr(theirs, field.name) == getattr(config, field.name), field.name
    assert theirs.id2label == dict(enumerate(config.id2label))
    assert theirs.label2id == config.label2id
    assert theirs.num_labels == config.num_labels
    assert theirs.architectures == [config.architecture]
    if activation := config.output_activation:
        assert theirs.sentence_transformers == {"activation_fn": activation}
        assert theirs.sbert_ce_default_activation_function == activation


@pytest.mark.parametrize("config", [BertConfig(), OTHER], ids=["default", "other"])
def test_what_transformers_writes_is_read(config, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the writer of these files")
    transformers.BertConfig.from_dict(config.to_dict()).save_pretrained(tmp_path)
    again, unknown = BertConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert again == config
    assert not unknown


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers", reason="the owner of the defaults")
    theirs = transformers.BertConfig()
    ours, unknown = BertConfig.from_dict(theirs.to_dict())
    assert ours == BertConfig() == BertConfig.from_dict({})[0]
    assert not unknown


def test_google_s_own_config():
    config, unknown = BertConfig.from_dict(GOOGLE)
    assert not unknown
    assert (config.hidden_size, config.num_hidden_layers, config.head_size) == (128, 2, 64)
    assert config.layer_norm_eps == 1e-12
    assert config.id2label == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "roberta"),
        ("model_type", None),
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"1": [0, 2]}),
        ("quantization_config", {"load_in_8bit": True}),
        ("hidden_act", "laplace"),
        ("hidden_act", None),
        ("hidden_act", ["gelu"]),
        ("problem_type", "token_classification"),
        ("sentence_transformers", {"activation_fn": ["torch.nn.Sigmoid"]}),
        ("vocab_size", 0),
        ("hidden_size", "768"),
        ("num_hidden_layers", None),
        ("num_attention_heads", True),
        ("num_attention_heads", 7),  # 768 is no multiple
        ("intermediate_size", 3.5),
        ("max_position_embeddings", -1),
        ("type_vocab_size", 0),
        ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", -0.1),
        ("classifier_dropout", "0.1"),
        ("layer_norm_eps", None),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", float("inf")),
        ("initializer_range", -0.02),
        ("pad_token_id", 30522),
        ("pad_token_id", -1),
        ("pad_token_id", "0"),
        ("num_labels", 0),
        ("num_labels", "2"),
        ("num_labels", True),
        ("id2label", ["a", "b"]),
        ("id2label", {"x": "a"}),
        ("id2label", {"0": "a", "2": "b"}),
        ("id2label", {"1": "a", "2": "b"}),
        ("id2label", {"0": "a", "1": "b", "01": "c"}),
        ("id2label", {"0": "same", "1": "same"}),
        ("id2label", {}),
    ],
)
def test_what_would_compute_differently_is_refused_by_name(field, value, unchecked):
    told = {"classifier_dropout": "head_dropout", "sentence_transformers": "activation_fn"}
    assert told.get(field, field) in _refused(**{field: value})


@pytest.mark.parametrize("values", [[], None, "bert", 3])
def test_what_is_no_object_is_refused(values):
    with pytest.raises(ModelFileError, match="expected an object"):
        BertConfig.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position_embedding_type", "absolute"),
        ("position_embedding_type", None),
        ("is_decoder", False),
        ("pruned_heads", {}),
        ("quantization_config", None),
        ("gradient_checkpointing", True),
        ("torch_dtype", "float16"),
        ("dtype", "bfloat16"),
        ("transformers_version", "4.8.2"),
        ("id2label", None),
        ("num_labels", None),
        ("problem_type", None),
    ],
)
def test_what_changes_nothing_is_accepted_in_silence(field, value):
    assert BertConfig.from_dict({field: value}) == (BertConfig(), [])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_are_kept(act):
    assert BertConfig.from_dict({"hidden_act": act})[0].hidden_act == act


def test_classes_of_flax_and_tensorflow_are_those_of_pytorch():
    for prefix in ("", "Flax", "TF"):
        stated = {"architectures": [f"{prefix}BertForTokenClassification"]}
        assert BertConfig.from_dict(stated)[0].architecture == "BertForTokenClassification"


def test_the_activation_of_a_cross_encoder_in_both_spellings():
    old, new = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
    for values, expected in (
        ({"sbert_ce_default_activation_function": old}, old),
        ({"sentence_transformers": {"version": "4.1.0", "activation_fn": new}}, new),
        (
            {
                "sbert_ce_default_activation_function": old,
                "sentence_transformers": {"activation_fn": new},
            },
            new,
        ),
        ({"sentence_transformers": {"version": "4.1.0"}}, None),
        ({"sbert_ce_default_activation_function": None}, None),
        ({"sentence_transformers": "4.1.0"}, None),
    ):
        config, unknown = BertConfig.from_dict(values)
        assert (config.output_activation, unknown) == (expected, [])


def test_quantized_weights_are_named():
    said = _refused(quantization_config={"quant_method": "gptq", "bits": 4})
    assert "'quant_method': 'gptq'" in said and "Name the model that was quantized" in said


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
def test_problem_types_are_kept(problem):
    assert BertConfig.from_dict({"problem_type": problem})[0].problem_type == problem


def test_problem_types_are_those_of_the_tasks():
    from flaxbert.heads import all_heads

    assert set(PROBLEM_TYPES) == {head.problem_type for head in all_heads().values()} - {None}


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ({"hidden_dropout_prob": 0.3}, 0.3),
        ({"hidden_dropout_prob": 0.3, "classifier_dropout": None}, 0.3),
        ({"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0}, 0.0),
        ({"hidden_dropout_prob": 0.0, "classifier_dropout": 0.2}, 0.2),
    ],
)
def test_the_head_s_dropout_falls_back(values, rate):
    assert BertConfig.from_dict(values)[0].head_dropout == rate


def test_label_ids_are_strings_in_any_order():
    config, _ = BertConfig.from_dict({"id2label": {"2": "c", "0": "a", "1": "b"}})
    assert config.id2label == ("a", "b", "c")
    assert config.label2id == {"a": 0, "b": 1, "c": 2}
    assert config.has_label_names


def test_more_than_ten_labels_keep_their_numbers():
    names = {str(i): f"name {i}" for i in range(12)}
    config, _ = BertConfig.from_dict({"id2label": dict(sorted(names.items()))})
    assert config.id2label == tuple(names.values())
    assert list(config.to_dict()["id2label"]) == [str(i) for i in range(12)]


@pytest.mark.parametrize("name", ["num_labels", "_num_labels"])
def test_a_number_of_labels_alone(name):
    config, unknown = BertConfig.from_dict({name: 4})
    assert config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert (config.num_labels, unknown) == (4, [])
    assert not config.has_label_names


def test_names_win_over_a_number_as_in_transformers():
    config, _ = BertConfig.from_dict({"num_labels": 5, "id2label": {"0": "a", "1": "b"}})
    assert config.id2label == ("a", "b")


def test_unknown_fields_are_returned_by_name():
    config, unknown = BertConfig.from_dict({"rope_theta": 1e4, "hidden_size": 24, "alibi": True})
    assert config.hidden_size == 24
    assert unknown == ["alibi", "rope_theta"]
