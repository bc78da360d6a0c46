"""Model folders: PyTorch -> flaxbert -> PyTorch and back with the same bits, whatever the dialect.

Bits are compared, not values; and the scores that transformers' own pipeline computes from a
written folder are compared with ours.
"""

from __future__ import annotations

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from flaxbert import Classifier, FlaxBertForSequenceClassification, heads
from flaxbert.errors import ModelFileError
from flaxbert.model import binding
from flaxbert.model.bert_config import BertConfig
from flaxbert.weights import table
from flaxbert.weights.folder import read_config, read_model, with_labels, write_model
from tests import folders
from tests.folders import CONFIG, HALVES, VARIANTS, assert_same_bits, bits, write_folder
from tests.reference import GOLDEN, NO_TORCH, config_for, load_golden, random_arrays, sentences

HEAD = {"classifier.weight", "classifier.bias"}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def _load(directory, **options):
    return FlaxBertForSequenceClassification.from_pretrained(directory, **options)


def _without(tensors, names):
    return {name: array for name, array in tensors.items() if name not in names}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_goes_round_with_the_same_bits(variant, tmp_path):
    tensors = folders.hard_tensors()
    model = _load(VARIANTS[variant](tmp_path / "messy", tensors))
    assert not model.fresh
    model.save_pretrained(tmp_path / "clean")
    assert_same_bits(load_file(tmp_path / "clean" / "model.safetensors"), tensors)
    again = _load(tmp_path / "clean")
    assert (again.config, again.notes, again.fresh) == (CONFIG, (), ())
    assert_same_bits(table.to_torch(CONFIG, again.params), tensors)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("sharded", [False, True])
def test_half_precision_is_widened_exactly(half, sharded, tmp_path):
    narrow = folders.as_dtype(folders.hard_tensors(), HALVES[half])
    write = folders.write_shards if sharded else write_folder
    model = _load(write(tmp_path / "half", narrow))
    expected = {name: array.astype(np.float32) for name, array in narrow.items()}
    assert_same_bits(table.to_torch(CONFIG, model.params), expected)
    # And it is really half precision that was in the file.
    assert any(
        (bits(expected[name]) != bits(array)).any()
        for name, array in folders.hard_tensors().items()
    )


def test_float64_is_rounded_to_the_nearest_float32(tmp_path):
    tensors = {k: v.astype(np.float64) for k, v in folders.random_tensors().items()}
    third = np.full_like(tensors["classifier.bias"], 1 / 3)
    model = _load(write_folder(tmp_path, tensors | {"classifier.bias": third}))
    np.testing.assert_array_equal(
        model.params["classifier"]["bias"], np.full(3, 1 / 3, np.float32), strict=True
    )


def test_google_s_config_name_is_read(tmp_path):
    expected = dataclasses.replace(CONFIG, id2label=("LABEL_0", "LABEL_1"))
    write_folder(tmp_path, folders.random_tensors(expected))
    values = CONFIG.to_dict()
    for field in ("model_type", "layer_norm_eps", "id2label", "label2id", "architectures"):
        del values[field]
    (tmp_path / "config.json").unlink()
    (tmp_path / "bert_config.json").write_text(json.dumps(values))
    model = _load(tmp_path)
    assert (model.config, model.fresh) == (expected, ())


@pytest.mark.parametrize(
    ("absent", "prefix"),
    [(HEAD, True), (POOLER, True), (HEAD | POOLER, True), (HEAD | POOLER, False)],
    ids=["no head", "no pooler", "neither", "base model without prefix"],
)
def test_what_is_missing_is_fresh_and_told(absent, prefix, tmp_path):
    tensors = _without(folders.random_tensors(), absent)
    write_folder(tmp_path, tensors if prefix else folders.without_prefix(tensors))
    model = _load(tmp_path)
    assert set(model.fresh) == absent
    (note,) = [note for note in model.notes if "freshly initialised" in note]
    assert all(name in note for name in absent)
    after = table.to_torch(CONFIG, model.params)
    assert_same_bits({name: after[name] for name in tensors}, tensors)


def _fresh_values(directory, **options):
    model = _load(directory, **options)
    return table.to_torch(model.config, model.params)


def test_one_program_draws_what_is_missing_for_every_seed(tmp_path):
    """The values are those of a whole fresh model, of which nothing else is drawn."""
    write_folder(tmp_path, _without(folders.random_tensors(), HEAD))
    programs = [binding._init._cache_size()]
    for seed in (5, 6):
        found = _fresh_values(tmp_path, seed=seed)
        programs.append(binding._init._cache_size())
    assert programs[1] - programs[0] <= 1 and programs[2] == programs[1]
    whole = table.to_torch(CONFIG, heads.init_params(CONFIG, 6))
    assert_same_bits({name: found[name] for name in HEAD}, {name: whole[name] for name in HEAD})


def test_fresh_values_depend_on_the_seed_alone(tmp_path):
    write_folder(tmp_path / "a", _without(folders.random_tensors(), HEAD | POOLER))
    write_folder(tmp_path / "b", _without(folders.random_tensors(), HEAD))
    first, same = (_fresh_values(tmp_path / "a", seed=5) for _ in range(2))
    assert_same_bits(same, first)
    other = _fresh_values(tmp_path / "a", seed=6)
    for name in HEAD | POOLER:
        differs = (first[name] != other[name]).any()
        assert differs == name.endswith("weight"), name  # biases are zeros
    # Nor on what else is fresh.
    head_only = _fresh_values(tmp_path / "b", seed=5)
    assert_same_bits({n: head_only[n] for n in HEAD}, {n: first[n] for n in HEAD})


def test_fresh_values_are_normal_with_the_config_s_range(tmp_path):
    config = dataclasses.replace(CONFIG, hidden_size=160, initializer_range=0.5)
    tensors = _without(folders.random_tensors(config), HEAD | POOLER)
    write_folder(tmp_path, tensors, config.to_dict())
    fresh = _fresh_values(tmp_path)
    pooler = fresh["bert.pooler.dense.weight"].ravel() / 0.5
    # 25 600 draws: five standard errors of the mean (1 / 160), of the standard deviation
    # (1 / (160 sqrt 2)) and of the fourth moment (sqrt 96 / 160).
    assert abs(pooler.mean()) < 5 / 160
    assert abs(pooler.std() - 1) < 5 / (160 * np.sqrt(2))
    assert abs((pooler**4).mean() - 3) < 5 * np.sqrt(96) / 160
    assert not fresh["bert.pooler.dense.bias"].any()
    assert not fresh["classifier.bias"].any()


def test_another_number_of_labels_replaces_the_head_only(tmp_path):
    tensors = folders.random_tensors()
    write_folder(tmp_path, tensors)
    model = _load(tmp_path, num_labels=5)
    assert set(model.fresh) == HEAD
    assert any("another number of labels than 5" in note for note in model.notes)
    assert model.config.id2label == tuple(f"LABEL_{i}" for i in range(5))
    after = table.to_torch(model.config, model.params)
    assert after["classifier.weight"].shape == (5, 8)
    rest = _without(tensors, HEAD)
    assert_same_bits({name: after[name] for name in rest}, rest)


def test_the_same_number_of_labels_keeps_the_head(tmp_path):
    tensors = folders.random_tensors()
    write_folder(tmp_path, tensors)
    for options in ({"num_labels": 3}, {"id2label": ["a", "b", "c"]}):
        model = _load(tmp_path, **options)
        assert (model.fresh, model.notes) == ((), ())
        assert_same_bits(table.to_torch(CONFIG, model.params), tensors)


def test_dropped_heads_and_unused_fields_are_told(tmp_path):
    tensors = folders.with_pretraining_heads(folders.random_tensors())
    write_folder(tmp_path, tensors, CONFIG.to_dict() | {"alibi": True, "xmod": 1})
    notes = " / ".join(_load(tmp_path).notes)
    assert "left out cls.* (9 parameters), which this model does not have" in notes
    assert "alibi, xmod" in notes


def _of_class(directory, architecture, tensors):
    return write_folder(directory, tensors, CONFIG.to_dict() | {"architectures": [architecture]})


OTHER_CLASSES = (
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForNextSentencePrediction",
    "FlaxBertForMultipleChoice",
)


@pytest.mark.parametrize("architecture", OTHER_CLASSES)
def test_the_head_of_a_class_for_another_task_is_not_used(architecture, tmp_path):
    """Though it may have the same names and shapes; what is trained from it starts fresh."""
    tensors = folders.random_tensors()
    _of_class(tmp_path, architecture, tensors)
    model = _load(tmp_path)
    assert set(model.fresh) == HEAD
    name = architecture.removeprefix("Flax")
    assert f"its head (classifier.*) is {name}'s, and is not used" in model.notes
    rest = _without(tensors, HEAD)
    after = table.to_torch(model.config, model.params)
    assert_same_bits({name: after[name] for name in rest}, rest)
    model.source = tmp_path
    with pytest.raises(ModelFileError, match=f"its head is {name}'s: there is no trained"):
        Classifier(model)


@pytest.mark.parametrize("architecture", ["MyBert", "BertModel"])
def test_a_class_that_is_not_known_is_told(architecture, tmp_path):
    """Its head is used if it has exactly the parameters of a sequence classifier."""
    tensors = folders.random_tensors()
    model = _load(_of_class(tmp_path / "same", architecture, tensors))
    assert model.fresh == ()
    assert model.notes == (f"its class {architecture} is read as BertForSequenceClassification",)
    for extra in ("fc.weight", "classifier.dense.weight", "crf.transitions"):
        other = tensors | {extra: np.zeros((3, 3), np.float32)}
        model = _load(_of_class(tmp_path / extra, architecture, other))
        assert set(model.fresh) == HEAD
        tops = ", ".join(sorted({"classifier.*", f"{extra.partition('.')[0]}.*"}))
        assert f"its head ({tops}) is {architecture}'s, and is not used" in model.notes
    del other["bert.pooler.dense.bias"]
    with pytest.raises(ModelFileError, match=r"pooler\.dense\.bias is missing"):
        _load(_of_class(tmp_path / "half", architecture, other))


def test_a_folder_that_names_no_class_is_read_as_before(tmp_path):
    values = CONFIG.to_dict()
    for stated in ([], None, ["BertForSequenceClassification", "Other"], [None], "Bert"):
        write_folder(tmp_path, folders.random_tensors(), values | {"architectures": stated})
        model = _load(tmp_path)
        assert (model.fresh, model.notes) == ((), ())


def test_the_activation_of_a_cross_encoder_is_kept_with_its_head(tmp_path):
    config = dataclasses.replace(CONFIG, id2label=("LABEL_0",))
    identity = "torch.nn.modules.linear.Identity"
    values = config.to_dict() | {"sbert_ce_default_activation_function": identity}
    write_folder(tmp_path / "a", folders.random_tensors(config), values)
    model = _load(tmp_path / "a")
    assert (model.config.output_activation, model.notes) == (identity, ())
    model.save_pretrained(tmp_path / "b")
    assert _load(tmp_path / "b").config == model.config
    assert _load(tmp_path / "b", id2label=["relevant"]).config.output_activation == identity
    for changes in ({"num_labels": 2}, {"problem_type": "regression"}):
        assert _load(tmp_path / "b", **changes).config.output_activation is None
    # As newer versions of sentence-transformers write it.
    newest = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (tmp_path / "b" / "config_sentence_transformers.json").write_text(json.dumps(newest))
    assert _load(tmp_path / "b").config.output_activation == newest["activation_fn"]


def test_wrong_weights_name_the_folder_and_every_difference(tmp_path):
    tensors = folders.random_tensors()
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    tensors["extra.weight"] = np.zeros(1, np.float32)
    write_folder(tmp_path, tensors)
    with pytest.raises(ModelFileError) as caught:
        _load(tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert message.startswith(f"{tmp_path}: ")
    assert "encoder.layer.1.output.dense.bias is missing" in message
    assert "extra.weight is not a parameter" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected an object, got list"),
        ('{"model_type": "roberta"}', "model_type='roberta' is not supported"),
        ('{"hidden_act": "xielu"}', "hidden_act: expected one of"),
        ('{"id2label": {"1": "a"}}', "id2label must number its names"),
    ],
)
def test_a_config_that_cannot_be_used_is_named_once(text, expected, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelFileError) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert str(caught.value).count("config.json") == 1


def test_what_is_no_model_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    for path, said in [
        (tmp_path / "absent", "is missing"),
        (file, "is not a folder; name the one that holds it"),
        (tmp_path, "has no config.json"),
    ]:
        with pytest.raises(ModelFileError, match=said):
            read_config(path)


def test_with_labels_changes_what_is_given_only():
    assert with_labels(CONFIG, None) == CONFIG
    named = with_labels(CONFIG, ["a", "b"], "regression")
    assert (named.id2label, named.problem_type) == (("a", "b"), "regression")
    assert dataclasses.replace(named, id2label=CONFIG.id2label, problem_type=None) == CONFIG


def test_write_model_writes_all_parts(tmp_path):
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    write_folder(source, folders.random_tensors())
    (source / "vocab.txt").write_text("[PAD]\n")
    config, ignored = read_config(source)
    loaded = read_model(source, config, 0, ignored)
    write_model(target, config, loaded.params, [source / "vocab.txt"], card="# card\n")
    assert {path.name for path in target.iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "README.md",
    }
    assert (target / "vocab.txt").read_text() == "[PAD]\n"
    assert (target / "README.md").read_text() == "# card\n"
    assert BertConfig.from_dict(json.loads((target / "config.json").read_text()))[0] == config


def test_a_model_may_be_saved_over_its_own_folder(tmp_path):
    tensors = folders.hard_tensors()
    write_folder(tmp_path, folders.with_old_norms(folders.without_prefix(tensors)))
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    _load(tmp_path).save_pretrained(tmp_path)
    assert_same_bits(load_file(tmp_path / "model.safetensors"), tensors)
    assert (tmp_path / "vocab.txt").read_text() == "[PAD]\n"


# With PyTorch and transformers on the other side: live on Python 3.11, golden folders everywhere.

SAVED = config_for(**folders.SAVED)
FOLDERS = GOLDEN / "folders"
HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def torch(request):
    counterpart = request.function.__doc__.rpartition("Golden: ")[2]
    return pytest.importorskip("torch", reason=NO_TORCH + counterpart)


def _torch_load(directory, torch):
    import transformers

    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, info[kind])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return model.eval()


def _state(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def test_a_folder_that_pytorch_saved():
    model = _load(FOLDERS / "classifier")
    assert (model.fresh, model.notes) == ((), ())
    assert_same_bits(table.to_torch(model.config, model.params), random_arrays(SAVED))
    batch = sentences(SAVED, folders.SAVED_LENGTHS)
    ours = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
    theirs = json.loads((FOLDERS / "classifier" / "logits.json").read_text())
    # Logits near 0.1 in float32, 2 layers: measured 3e-8.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_a_written_folder_is_what_pytorch_saved(tmp_path):
    """The same tensors, shapes and bits, and no value in config.json that says otherwise."""
    _load(FOLDERS / "classifier").save_pretrained(tmp_path)
    name = "model.safetensors"
    ours, theirs = load_file(tmp_path / name), load_file(FOLDERS / "classifier" / name)
    assert_same_bits(ours, theirs)
    places = (tmp_path, FOLDERS / "classifier")
    stored = [json.loads((place / "config.json").read_text()) for place in places]
    shared = stored[0].keys() & stored[1].keys()
    assert {"id2label", "label2id", "hidden_size", "architectures", "model_type"} <= shared
    versions = {"transformers_version"}
    assert all(stored[0][n] == stored[1][n] for n in shared - versions)


@pytest.mark.parametrize("labels", [1, 7])
def test_pytorch_to_ours_to_pytorch(labels, torch, tmp_path):
    """Golden: test_a_folder_that_pytorch_saved and test_a_written_folder_is_what_pytorch_saved"""
    from tests.torch_reference import torch_inputs, torch_model

    torch_model(labels=labels).float().save_pretrained(tmp_path / "theirs")
    model = _load(tmp_path / "theirs")
    assert (model.fresh, model.notes) == ((), ())
    model.save_pretrained(tmp_path / "ours")
    back = _torch_load(tmp_path / "ours", torch)
    source = _torch_load(tmp_path / "theirs", torch)
    assert type(back).__name__ == "BertForSequenceClassification"
    assert_same_bits(_state(back), _state(source))
    batch = sentences(model.config, [3, 17, 9])
    with torch.no_grad():
        theirs = back(**torch_inputs(batch)).logits
        # The same bits in the same program: equal, not close.
        assert torch.equal(theirs, source(**torch_inputs(batch)).logits)
    ours = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
    # Logits near 0.1 in float32, 2 layers: measured 3e-8.
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6)


def test_ours_to_pytorch_to_ours(torch, tmp_path):
    """Golden: test_a_written_folder_is_what_pytorch_saved"""
    write_folder(tmp_path / "a", folders.random_tensors())
    model = _load(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    _torch_load(tmp_path / "b", torch).save_pretrained(tmp_path / "c")
    again = _load(tmp_path / "c")
    assert again.config == model.config
    assert_same_bits(table.flatten(again.params), table.flatten(model.params))


@pytest.mark.parametrize("kind", folders.OTHER_HEADS)
def test_other_heads_of_transformers_are_read(kind):
    """As transformers saved them; tests/golden/test_golden.py saves them again on Python 3.11."""
    model = _load(FOLDERS / kind)
    assert set(model.fresh) >= HEAD
    assert (model.config.hidden_size, model.config.vocab_size) == (8, 50)
    ours, expected = table.to_torch(model.config, model.params), random_arrays(SAVED)
    stored = load_file(FOLDERS / kind / "model.safetensors")
    shared = ours.keys() & {table.canonical_name(name) for name in stored}
    assert shared == ours.keys() - set(model.fresh)
    assert_same_bits({n: ours[n] for n in shared}, {n: expected[n] for n in shared})


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_as_pytorch_saves_it(half):
    assert (FOLDERS / half / "model.safetensors.index.json").is_file() == (half == "bfloat16")
    model = _load(FOLDERS / half)
    rounded = {
        name: array.astype(HALF[half]).astype(np.float32)
        for name, array in random_arrays(SAVED).items()
    }
    assert_same_bits(table.to_torch(model.config, model.params), rounded)


def _scores(records, case):
    """Returns our score of each sentence and label."""
    by_label = [{"stars": r["value"]} if "value" in r else r["probabilities"] for r in records]
    assert all(tuple(scores) == case.labels for scores in by_label)
    return np.array([list(scores.values()) for scores in by_label])


@pytest.mark.parametrize("name", folders.PIPELINES)
def test_the_pipeline_of_transformers_gives_our_scores(name, tmp_path):
    """Its scores are golden; tests/golden/test_golden.py computes them again on Python 3.11."""
    from flaxbert import Classifier

    case = folders.PIPELINES[name]
    folder = folders.write_folder_for_sentences(tmp_path / "model", case)
    theirs = load_golden("scores")[name]
    records = Classifier.from_pretrained(folder, max_length=64)(folders.SENTENCES)
    ours = _scores(records, case)
    # Scores near 1 in float32 from two programs: a few units of 6e-8.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    for record, row in zip(records, theirs, strict=True):
        if "label" in record:
            assert record["label"] == case.labels[int(row.argmax())]
            assert record["score"] == pytest.approx(row.max(), abs=1e-6)
        if "labels" in record:
            expected = {n for n, score in zip(case.labels, row, strict=True) if score > 0.5}
            assert set(record["labels"]) == expected
    assert np.ptp(np.sort(theirs, axis=1), axis=0).max() > 1e-3  # the sentences do matter


def test_the_tokenizer_of_a_written_folder_is_the_source_s(minilm, tmp_path):
    from transformers import AutoTokenizer

    case = folders.Pipeline(("a", "b"), None)
    folder = folders.write_folder_for_sentences(tmp_path / "model", case)
    theirs = AutoTokenizer.from_pretrained(str(minilm))(folders.SENTENCES)["input_ids"]
    ours = AutoTokenizer.from_pretrained(str(folder))(folders.SENTENCES)["input_ids"]
    assert ours == theirs


def test_a_folder_that_transformers_saved_is_read_whole(torch, tmp_path):
    """Golden: test_a_folder_that_pytorch_saved, and for its tokenizer the case (tokenizer.json,
    config.json) of test_folders_that_are_enough in tests/data/test_tokenize.py"""
    import transformers

    from flaxbert import Classifier

    case = folders.Pipeline(("bad", "good"), None)
    folder = folders.write_folder_for_sentences(tmp_path / "ours", case)
    saved = tmp_path / "theirs"
    transformers.AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(saved)
    transformers.AutoTokenizer.from_pretrained(str(folder)).save_pretrained(saved)
    assert not (saved / "vocab.txt").exists()  # transformers 5 writes tokenizer.json alone
    model = _load(saved)
    assert (model.notes, model.fresh) == ((), ())
    assert "tokenizer.json" in {path.name for path in model.tokenizer_files()}
    texts = folders.SENTENCES
    assert Classifier.from_pretrained(saved, max_length=64)(texts) == Classifier.from_pretrained(
        folder, max_length=64
    )(texts)
