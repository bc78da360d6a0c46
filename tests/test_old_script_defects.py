"""The defects of transformers 4's run_flax_glue.py, each as a test that fails if we had it too.

Four small runs serve all of them, by the public commands. Note: some tests start a run and end it
before it compiles, to look at the values that it would have started with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert import FlaxBertForSequenceClassification
from flaxbert.config import Mesh, make_config
from flaxbert.data import batches
from flaxbert.loop import step as loop_step
from flaxbert.loop.mesh import make_mesh
from flaxbert.model import dropout as drop
from flaxbert.model.attention import attend
from flaxbert.model.bert import Places
from flaxbert.run import compile, inputs
from flaxbert.run import shapes as run_shapes
from flaxbert.storage.workdir import Workdir
from tests.commands import Done, call, final_state, metrics_without_times, train_flags
from tests.glue_data import ROWS, write_glue
from tests.inputs import write_trained
from tests.loop.harness import BERT, examples, means, run

pytestmark = pytest.mark.slow

TRAIN_ROWS, DEV_ROWS = 96, 40  # of the `reviews` fixture
BATCH = 40  # 3 updates an epoch, the last one short


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, what it said, and the batches that it trained on."""

    workdir: Path
    done: Done
    batches: list[dict[str, np.ndarray]]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.workdir / name).read_text())

    def examples(self) -> list[list[int]]:
        """Returns the rows of the data set that each update trained on."""
        return [_real(batch["example_ids"]) for batch in self.batches]


class _Stop(Exception):
    pass


class _Captured(io.StringIO):
    """`call` wants a capture, and a module fixture has none: stands in for capsys."""

    def readouterr(self) -> Any:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return type("Captured", (), {"out": "", "err": text})


def _call(command: str, *flags: object) -> Done:
    captured = _Captured()
    with contextlib.redirect_stderr(captured), contextlib.redirect_stdout(io.StringIO()):
        return call(command, *flags, capsys=captured)  # type: ignore[arg-type]


@contextlib.contextmanager
def _recorded(dies_before: int = -1) -> Iterator[list[dict[str, np.ndarray]]]:
    """Collects the training batches; the run may die before it gets one of them."""
    real, seen = batches.train_batch, []

    def spy(*args: Any, step: int, **kwargs: Any) -> Any:
        if step == dies_before:
            raise _Stop("died here")
        batch = real(*args, step=step, **kwargs)
        seen.append({name: array.copy() for name, array in batch.items()})
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "train_batch", spy)
        yield seen


def _real(example_ids: np.ndarray) -> list[int]:
    return sorted(example_ids[example_ids >= 0].tolist())


def _logged(run: Run, split: str, name: str) -> list[float]:
    lines = metrics_without_times(run.workdir)
    return [line[4] for line in lines if line[2:4] == (split, name)]


def _padding_share(seen: list[dict[str, np.ndarray]]) -> float:
    real = sum(int((batch["sequence_ids"] > 0).sum()) for batch in seen)
    return 1 - real / sum(batch["sequence_ids"].size for batch in seen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("defects")


@pytest.fixture(scope="module")
def model(folder) -> Path:
    """A checkpoint of one layer (`tiny_bert` takes twice as long to compile), its own labels."""
    return write_trained(folder / "model", names=("100 %", "%s {0}", "good"))


@pytest.fixture(scope="module")
def own_files(model, reviews, folder) -> Run:
    """One and a half epochs on CSV files, with the defaults for evaluation and checkpoints."""
    flags = train_flags(
        model,
        reviews["train"],
        folder / "own",
        data__validation=reviews["dev"],
        data__max_length=0,
        data__row_length=0,
        train__batch_size=BATCH,
        train__steps=0,
        train__epochs=1.5,
        optim__warmup=0,
        log__every=1,
    )
    with _recorded() as seen:
        done = _call("train", *flags)
    assert done.code == 0, done.err
    return Run(folder / "own", done, seen)


@pytest.fixture(scope="module")
def numbers(model, folder) -> Run:
    """Regression on a CSV file, unpacked; the run dies before update 6 and is started again."""
    lines = [f"film {i} was seen by {i % 7} of us,{i % 7 / 2}" for i in range(40)]
    for name, part in (("numbers", lines[:32]), ("numbers-dev", lines[32:])):
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *part]) + "\n")
    flags = train_flags(
        model,
        folder / "numbers.csv",
        folder / "run",
        data__validation=folder / "numbers-dev.csv",
        data__max_length=0,
        data__row_length=0,
        data__packing="pad",
        train__batch_size=8,
        train__steps=8,
        train__eval_every=1,
    )
    with _recorded(dies_before=5):
        died = _call("train", *flags)
    assert died.code == 70 and "died here" in died.err
    with _recorded() as seen:
        done = _call("train", *flags)
    assert done.code == 0, done.err
    return Run(folder / "run", done, seen)


@pytest.fixture(scope="module")
def mnli(model, folder) -> Iterator[Run]:
    """The shipped GLUE config on MNLI-shaped data."""
    import datasets

    with pytest.MonkeyPatch.context() as patch, _recorded() as seen:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        done = _call(
            "train",
            "--config=configs/glue.py:mnli",
            f"--workdir={folder / 'mnli'}",
            f"--config.model.path={model}",
            "--config.data.max_length=64",
            f"--config.data.dataset={write_glue(folder / 'glue', ('mnli',))}",
            "--config.train.steps=1",
            "--config.mesh.data=1",
        )
        assert done.code == 0, done.err
        yield Run(folder / "mnli", done, seen)


@dataclasses.dataclass(frozen=True)
class Start:
    """What chance decides in a run, and what was said before the first update."""

    head: np.ndarray
    encoder: np.ndarray
    order: list[int]
    data_seed: int
    dropout_seed: int
    err: str


def _start(model: Path, train: Path, workdir: Path, **fields: object) -> Start:
    """Starts a run and ends it where it would compile."""
    seen: dict[str, Any] = {}
    init, plan = loop_step.init_state, run_shapes.plan_training

    def spy_init(params: Any, *others: Any) -> Any:
        seen["head"] = np.asarray(params["classifier"]["kernel"])
        seen["encoder"] = np.asarray(params["bert"]["embeddings"]["word_embeddings"]["embedding"])
        return init(params, *others)

    def spy_plan(examples: Any, **kwargs: Any) -> Any:
        size, seed = kwargs["batch_size"], kwargs["seed"]
        seen["data_seed"] = seed
        seen["order"] = batches.update_indices(len(examples), size, seed, 0).tolist()
        return plan(examples, **kwargs)

    def stop(step: Any, state: Any, batch: Any, seeds: dict[str, Any]) -> Any:
        seen["dropout_seed"] = int(seeds["dropout"])
        raise _Stop("seen enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_step, "init_state", spy_init)
        patch.setattr(run_shapes, "plan_training", spy_plan)
        patch.setattr(compile, "compile_step", stop)
        done = _call("train", *train_flags(model, train, workdir, **fields))
    assert done.code == 70 and "seen enough" in done.err, done.err
    return Start(err=done.err, **seen)


@pytest.fixture(scope="module")
def starts(tiny_bert, reviews, folder) -> dict[str, Start]:
    """Starts that differ in one seed each."""
    cases = {"": {}, "seed": {"seed": 1}}
    cases |= {name: {f"seeds__{name}": 5} for name in ("init", "data", "dropout")}
    return {
        name: _start(
            tiny_bert,
            reviews["train"],
            folder / f"start-{name}",
            train__batch_size=BATCH,
            data__max_length=0,
            **fields,
        )
        for name, fields in cases.items()
    }


def test_f01_no_evaluation_interval(own_files):
    """Without --eval_steps the script divided by None after the first update."""
    validation = {
        line[0] for line in metrics_without_times(own_files.workdir) if line[2] != "train"
    }
    assert validation == {3, 5}  # after the epoch and at the end


def test_f02_only_a_validation_file(own_files, model, reviews, tmp_path, capsys):
    """With --validation_file alone the script died of an AttributeError on `valid_file`."""
    flags = train_flags(model, Path(), tmp_path / "run", data__max_length=0)
    flags.append(f"--config.data.validation={reviews['dev']}")
    flags = [flag for flag in flags if not flag.startswith("--config.data.train=")]
    done = call("train", *flags, capsys=capsys)
    assert done.code == 2 and "Traceback" not in done.err
    assert "config.data.train is empty: name the training file" in done.err
    # To measure a trained model no training file is needed.
    flags = [f"--model={own_files.workdir / 'model'}", f"--data={reviews['dev']}"]
    done = call("evaluate", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert json.loads(done.out)["eval_samples"] == DEV_ROWS


def test_f03_regression_on_own_files(numbers):
    """The script crashed on CSV regression (`label_list` unbound), and its metric was accuracy."""
    assert "target: regression" in numbers.done.err
    results = numbers.json("eval_results.json")
    assert {"eval_pearson", "eval_spearmanr", "eval_mse"} <= results.keys()
    assert not {"eval_accuracy", "eval_f1"} & results.keys()
    config = numbers.json("model/config.json")
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1


def test_f04_rows_are_not_padded_to_the_models_maximum(own_files, numbers):
    """Without --max_seq_length the script padded every example to 512 tokens, the model's most."""
    longest = max(_lengths(numbers.batches))
    assert longest < 24
    assert {batch["input_ids"].shape[-1] for batch in numbers.batches} == {-(-longest // 8) * 8}
    # One sentence of 27 tokens (the median) in each row of 64 would be 58 % padding.
    assert _padding_share(own_files.batches) < 0.2


def _lengths(seen: list[dict[str, np.ndarray]]) -> list[int]:
    return [
        int((batch["sequence_ids"] == number).sum())
        for batch in seen
        for number in range(1, int(batch["sequence_ids"].max()) + 1)
    ]


def test_f05_the_seed_reaches_the_head(starts):
    """The head always came from seed 0, whatever --seed: runs over seeds shared one head."""
    assert not np.array_equal(starts[""].head, starts["seed"].head)
    assert not np.array_equal(starts[""].head, starts["init"].head)
    assert np.array_equal(starts[""].head, starts["data"].head)
    assert np.array_equal(starts[""].head, starts["dropout"].head)
    assert np.array_equal(starts[""].encoder, starts["seed"].encoder)  # pretrained: no chance


def test_f06_the_head_is_drawn_as_pytorch_draws_it(tiny_bert, tmp_path):
    """The head kernel came from lecun_normal instead of BERT's normal(0, 0.02)."""
    shutil.copytree(tiny_bert, tmp_path / "model")
    config = json.loads((tiny_bert / "config.json").read_text()) | {"initializer_range": 0.02}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model = FlaxBertForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=768)
    kernel = np.asarray(model.params["classifier"]["kernel"])
    assert kernel.shape == (32, 768)
    # Five standard errors of mean, deviation and tail share of 24,576 normal values; lecun_normal
    # has deviation 0.18 here and nothing beyond 2.3 of its own.
    assert abs(kernel.mean()) < 5 * 0.02 / np.sqrt(kernel.size)
    assert abs(kernel.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * kernel.size)
    tail = 0.0124  # of a normal distribution beyond 2.5 deviations
    assert abs((np.abs(kernel) > 2.5 * 0.02).mean() - tail) < 5 * np.sqrt(tail / kernel.size)
    assert not np.asarray(model.params["classifier"]["bias"]).any()


def test_f07_attention_dropout_per_head_and_example():
    """Attention dropout drew one mask and used it for all heads and all examples of the batch."""
    rows, heads, length = 4, 4, 32
    sequences = jnp.broadcast_to(jnp.arange(1, rows + 1)[:, None], (rows, length))
    places = Places(sequences, jnp.broadcast_to(jnp.arange(length), (rows, length)), jnp.uint32(0))
    same = jnp.zeros((rows, length, heads, length))
    # Equal probabilities, and values that tell the keys apart: the context shows what was dropped.
    context = attend(
        same,
        same,
        jnp.broadcast_to(jnp.eye(length)[None, :, None], same.shape),
        query_sequences=places.sequence_ids,
        key_sequences=places.sequence_ids,
        key_positions=places.position_ids,
        rate=0.5,
        bits=places.bits(0, drop.ATTENTION),
    )
    dropped = np.asarray(jnp.swapaxes(context, 1, 2)) == 0
    masks = dropped.reshape(rows * heads, -1)
    # Independent masks agree in half of their places, within five standard errors.
    error = 5 * 0.5 / np.sqrt(masks.shape[1])
    for first, second in itertools.combinations(masks, 2):
        assert abs((first == second).mean() - 0.5) < error


def test_f08_the_batch_does_not_depend_on_the_devices():
    """Every host shuffled all data with the same key, so hosts trained on the same examples."""
    data, seen = examples(40), {1: [], 8: []}
    losses, bert = {}, dataclasses.replace(BERT, num_hidden_layers=1)
    for devices, examples_of in seen.items():

        def note(step: int, state: Any, batch: Any, to: list = examples_of) -> Any:
            to.append(_real(batch["example_ids"]))
            return state, batch

        mesh = Mesh(data=devices, fsdp=1, model=1)
        history, _ = run(data, updates=6, config=bert, mesh=mesh, packing="pad", corrupt=note)
        losses[devices] = means(history)
    assert seen[1] == seen[8]
    assert [len(update) for update in seen[8]] == [16, 16, 8] * 2  # global, not per device
    for epoch in (seen[8][:3], seen[8][3:]):
        assert sorted(itertools.chain(*epoch)) == [*range(40)]  # none twice, none left out
    # Sums over devices in another order: a few float32 roundings (2**-24) of the loss.
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-6)


def test_f09_order_and_dropout_have_seeds_of_their_own(starts, own_files):
    """One key was both split for dropout and used for shuffling."""
    base = starts[""]
    assert base.data_seed != base.dropout_seed
    assert starts["data"].order != base.order
    assert starts["data"].dropout_seed == base.dropout_seed
    assert starts["dropout"].order == base.order
    assert starts["dropout"].dropout_seed != base.dropout_seed
    assert starts["seed"].order != base.order
    assert starts["seed"].dropout_seed != base.dropout_seed
    assert own_files.examples()[0] == sorted(base.order)  # the order that a run really takes


def test_f10_every_example_counts(own_files, mnli):
    """The last short batch was dropped, MNLI mismatched never evaluated, test never predicted."""
    epoch = own_files.examples()[:3]
    assert [len(update) for update in epoch] == [40, 40, 16]
    assert sorted(itertools.chain(*epoch)) == [*range(TRAIN_ROWS)]
    results = mnli.json("eval_results.json")
    assert results["eval_samples"] == results["eval_samples_mm"] == ROWS["validation"]
    assert 0 <= results["eval_accuracy_mm"] <= 1
    done = _call("predict", f"--workdir={mnli.workdir}", "--split=test")
    assert done.code == 0, done.err
    for name in ("mnli", "mnli-mm"):
        lines = (mnli.workdir / f"predict_results_{name}.txt").read_text().splitlines()
        assert len(lines) == 1 + ROWS["test"]


def test_f11_the_whole_state_and_the_best_model_are_kept(numbers):
    """Only the newest weights were saved: no optimizer, step or best model, and no resume."""
    assert "resuming" in numbers.done.err and "after update 4 of 8" in numbers.done.err
    assert len(numbers.batches) == 4  # of 8 updates
    state = final_state(numbers.workdir)
    assert state["step"] == state["optimizer/count"] == 8
    trained = {name.removeprefix("params/") for name in state if name.startswith("params/")}
    for moment in ("mu", "nu"):
        prefix = f"optimizer/{moment}/"
        names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        assert names == trained
        assert any(state[prefix + name].any() for name in names)
    best = numbers.json("checkpoints/8/run.json")["best"]
    losses = _logged(numbers, "validation", "loss")
    assert len(losses) == 8 and best["value"] == min(losses)
    weights = (numbers.workdir / "model" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == best["weights"]


def test_f12_label_names_leave_with_the_model(own_files, reviews, tmp_path):
    """id2label was never written, so every user of the model saw LABEL_0."""
    config = own_files.json("model/config.json")
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["label2id"] == {"negative": 0, "positive": 1}
    output = tmp_path / "out.jsonl"
    files = [f"--input={reviews['test']}", f"--output={output}"]
    done = _call("predict", f"--model={own_files.workdir / 'model'}", *files)
    assert done.code == 0, done.err
    labels = {json.loads(line)["label"] for line in output.read_text().splitlines()}
    assert labels <= {"negative", "positive"}


def test_f13_a_label_mismatch_is_told_in_words(own_files, model, reviews, tmp_path):
    """Labels unlike the checkpoint's ended in `--- Logging error ---` instead of a warning."""
    told = "the checkpoint's labels are '100 %', '%s {0}', 'good', the run's are 'negative', "
    assert told + "'positive'; its head is not used" in own_files.done.err
    assert "Logging error" not in own_files.done.err
    two = write_trained(tmp_path / "two", names=("100 %", "%s {0}"))
    start = _start(two, reviews["train"], tmp_path / "run", data__max_length=0)
    assert (
        "'%s {0}', the run's are 'negative', 'positive'; its head is trained further" in start.err
    )
    done = _call("evaluate", f"--model={model}", f"--data={reviews['dev']}")
    assert done.code == 3 and "Traceback" not in done.err
    assert "(got 'positive')" in done.err and "one of '100 %', '%s {0}', 'good'." in done.err


def test_f14_loop_and_schedule_count_the_same_epochs(own_files):
    """The loop ran int(num_train_epochs) epochs, the schedule was laid out for all of them."""
    assert len(own_files.batches) == 5  # 1.5 epochs of 3 updates, rounded up
    results = own_files.json("train_results.json")
    assert results["train_steps"] == 5 and results["epoch"] == pytest.approx(5 / 3)
    rates = _logged(own_files, "train", "learning_rate")
    # From the peak to one step above 0; float32 rounds each value to 6e-8 of itself.
    np.testing.assert_allclose(rates, [1e-3 * (1 - i / 5) for i in range(5)], rtol=1e-6)


def test_f15_no_mask_is_cast_to_integers(tiny_bert):
    """`head_mask` was cast to int32, so soft masks became hard ones without a word."""
    model = FlaxBertForSequenceClassification.from_pretrained(tiny_bert)
    ids = np.array([[101, 2023, 102, 0]])
    with pytest.raises(TypeError, match="head_mask"):
        model(ids, head_mask=np.full((2, 2), 0.5))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="attention_mask: expected integers, got dtype float"):
        model(ids, attention_mask=np.array([[1.0, 1.0, 0.5, 0.0]]))


def test_f16_padding_is_a_choice_and_shapes_are_few(own_files, numbers):
    """Padding could not be chosen, and evaluation padded every batch again, in one length."""
    assert {batch["cls_positions"].shape[-1] for batch in numbers.batches} == {1}  # one a row
    assert own_files.batches[0]["cls_positions"].shape[-1] > 1  # several a row
    shapes = {batch["input_ids"].shape for batch in own_files.batches}
    listed = ", ".join(f"{rows} x {length}" for _, rows, length in sorted(shapes))
    assert f"rows: {listed} tokens (pack)" in own_files.done.err
    assert len(shapes) <= 4 and f"compiled {len(shapes)} shapes" in own_files.done.err
    # Evaluation plans its rows once, for all of the data: two row counts a length at the most.
    config = make_config(own_files.json("config.json"))
    prepared = inputs.read_inputs(config, Workdir(own_files.workdir), {"dataset_revision": ""})
    mesh = make_mesh(config.mesh, prepared.bert)
    plans = run_shapes.plan_shapes(config, prepared, mesh, "float32", 1).validation
    assert plans is not None and len(plans) == 1
    longest = prepared.validation[""].tokens.lengths.max()
    assert longest <= plans[0].row_length <= 128
    assert all(len(plan.row_counts) <= 2 for plan in plans)
    evaluated = list(batches.inference_batches(prepared.validation[""], plans))
    assert len({batch["input_ids"].shape for batch in evaluated}) == 1
    seen = sorted(itertools.chain.from_iterable(_real(b["example_ids"]) for b in evaluated))
    assert seen == [*range(DEV_ROWS)]
