"""PyTorch's side of the benchmarks computes the same model in every mode; live PyTorch, so 3.11."""

from __future__ import annotations

import collections
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is pinned for Python 3.11")
transformers = pytest.importorskip("transformers")

from tests.benchmarks import load  # noqa: E402 - it imports PyTorch

peer = load("peers/pytorch")

LENGTHS = np.array([9, 3, 14, 1, 6, 14])
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
DATA = {
    "input_ids": np.random.default_rng(0).integers(5, 99, OFFSETS[-1]).astype(np.int32),
    "offsets": OFFSETS,
    "labels": np.array([0, 1, 1, 0, 1, 0], np.int32),
}
CHOSEN = np.array([2, 0, 3, 5])


def tensors(padding: str, data=DATA, chosen=CHOSEN):
    batch = peer.lay_out(data, chosen, padding)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


@pytest.fixture
def model():
    """Large random weights, so that every position matters to the logits."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config).eval()


def outcome(module, inputs):
    """Logits, loss and gradients."""
    out = module(**inputs)
    module.zero_grad()
    out.loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [out.logits.detach(), out.loss.detach(), *(grad.clone() for grad in gradients)]


# In float32 both sum in orders of their own: of numbers around 1, 24 bits and three layers. A token
# that saw another sequence, or another position, would move the logits by more than 0.01.
TOLERANCE = 2e-5


def test_unpadded_is_the_padded_model(model):
    padded = outcome(model, tensors("pad128"))
    unpadded = outcome(peer.Unpadded(model, int(LENGTHS.max())), tensors("unpadded"))
    assert len(padded) == len(unpadded)
    for ours, theirs in zip(unpadded, padded, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("padding", ["dynamic", "grouped", "grouped8"])
def test_padding_changes_nothing(model, padding):
    expected = model(**tensors("pad128")).logits
    torch.testing.assert_close(
        model(**tensors(padding)).logits, expected, atol=TOLERANCE, rtol=1e-4
    )


def test_a_neighbour_would_show(model):
    """A failing case: the sequences run into one another."""
    inputs = tensors("unpadded")
    bounds = inputs["bounds"].clone()
    bounds[1:-1] += 1
    with torch.no_grad():
        right = peer.Unpadded(model, 14)(**inputs).logits
        wrong = peer.Unpadded(model, 14)(**inputs | {"bounds": bounds}).logits
    assert (right - wrong).abs().max() > 0.01


def test_rows_hold_their_tokens():
    batch = peer.lay_out(DATA, CHOSEN, "grouped8")
    assert batch["input_ids"].shape == (4, 16)
    for row, index in enumerate(CHOSEN):
        own = DATA["input_ids"][OFFSETS[index] : OFFSETS[index + 1]]
        assert batch["input_ids"][row].tolist() == [*own, *[0] * (16 - len(own))]
        assert batch["attention_mask"][row].sum() == len(own)
    assert peer.lay_out(DATA, CHOSEN, "pad128")["input_ids"].shape == (4, 128)
    assert batch["labels"].tolist() == DATA["labels"][CHOSEN].tolist()


def test_labels_of_tokens_stand_at_their_tokens():
    data = {**DATA, "labels": np.arange(len(DATA["input_ids"])) - 1}
    batch = peer.lay_out(data, CHOSEN, "dynamic")
    real = batch["attention_mask"] == 1
    own = [np.arange(*data["offsets"][i : i + 2]) - 1 for i in CHOSEN]
    expected = np.concatenate(own)
    assert batch["labels"][real].tolist() == np.where(expected < 0, -100, expected).tolist()
    assert (batch["labels"][~real] == -100).all() and not real.all()


def test_full_rows_have_no_mask():
    data = {**DATA, "input_ids": np.arange(12), "offsets": np.array([0, 4, 8, 12])}
    batch = peer.lay_out(data, np.array([2, 0]), "full")
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]


@pytest.mark.parametrize("padding", ["dynamic", "grouped8", "unpadded"])
def test_an_epoch_has_every_sequence_once(padding):
    batches = peer.make_batches(DATA, padding, 2)
    found = [next(batches) for _ in range(3)]
    assert sum(real for _, real, _ in found) == LENGTHS.sum()
    assert sum(attended for _, _, attended in found) == np.square(LENGTHS).sum()
    tokens = np.concatenate([batch["input_ids"].ravel() for batch, _, _ in found])
    assert sorted(tokens[tokens > 0]) == sorted(DATA["input_ids"])


@pytest.mark.parametrize("padding", ["pad128", "dynamic", "grouped8"])
def test_every_width_to_come_is_warmed_up(padding):
    found = peer.of_each_width(DATA, padding, 2, count=20)
    widths = [batch["input_ids"].shape[1] for batch, _, _ in found]
    assert widths == sorted(set(widths), reverse=True)
    batches = peer.make_batches(DATA, padding, 2)
    assert set(widths) == {next(batches)[0]["input_ids"].shape[1] for _ in range(20)}
    assert len(widths) > 1 or padding == "pad128"


def test_graphs_begin_anew_each_update_and_must_be_there(monkeypatch, model):
    from torch._dynamo.utils import counters

    modes, marked = [], []
    monkeypatch.setattr(torch, "compile", lambda module, mode: modes.append(mode) or module)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(1))
    monkeypatch.setitem(counters, "inductor", collections.Counter())
    update = peer.Update(model, "graphs", "float32", "cpu", 2)
    for _ in range(2):
        update(peer.lay_out(DATA, CHOSEN, "grouped8"))
    assert modes == ["reduce-overhead"] and marked == [1, 1]
    before = update.compiled()
    counters["inductor"]["cudagraph_recorded_non_static_inputs"] += 3
    assert update.compiled() == before + 3
    counters["inductor"]["cudagraph_skips"] += 1
    with pytest.raises(SystemExit, match="skipped CUDA graphs"):
        update.compiled()


def main(monkeypatch, mode: str, *arguments: str):
    asked = ["pytorch.py", "--data=x", "--model=x", f"--mode={mode}", *arguments]
    monkeypatch.setattr(sys, "argv", asked)
    peer.main()


def test_an_absent_gpu_is_not_replaced_in_silence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no CUDA device"):
        main(monkeypatch, "dynamic-float32", "--device=cuda")


def test_a_mode_that_cannot_run_says_why(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="graphs need a CUDA device"):
        main(monkeypatch, "full-bfloat16-graphs", "--device=cpu")
    with pytest.raises(SystemExit):
        main(monkeypatch, "full-bfloat16-fast")
    assert "expected PADDING-DTYPE[-compile|-graphs]" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(peer, "varlen_attn", None)
    with pytest.raises(SystemExit, match=r"unpadded needs PyTorch 2\.10 or later"):
        main(monkeypatch, "unpadded-bfloat16")


def test_a_loss_that_is_not_finite_has_no_speed(monkeypatch, model, tmp_path):
    np.savez(tmp_path / "tokens.npz", **DATA)
    torch.nn.init.constant_(model.classifier.bias, torch.inf)
    monkeypatch.setattr(peer, "load", lambda *_: model)
    data, few = f"--data={tmp_path / 'tokens.npz'}", ("--batch=2", "--updates=1", "--warmup=1")
    with pytest.raises(SystemExit, match="the last loss was nan"):
        main(monkeypatch, "dynamic-float32", data, "--device=cpu", *few)
