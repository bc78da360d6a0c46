"""Every GLUE task from the shipped config to results, on GLUE-shaped data and a tiny model."""

from __future__ import annotations

import json
import shutil

import pytest

from flaxbert.data.sources.glue import GLUE
from tests.commands import call
from tests.glue_data import ROWS, write_glue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("data") / "glue")


# A sentence, a pair with F1, a regression, two validation splits. Of the others, whose rows
# tests/data/sources/test_hub_datasets.py reads, a run would take the same way.
@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb", "mnli"])
def test_task_from_config_to_results(name, glue, tiny_bert, tmp_path, capsys):
    row, workdir = GLUE[name], tmp_path / name
    done = call(
        "train",
        f"--config=configs/glue.py:{name}",
        f"--workdir={workdir}",
        f"--config.model.path={tiny_bert}",
        f"--config.data.dataset={glue}",
        "--config.train.steps=2",
        "--config.train.batch_size=16",
        "--config.mesh.data=1",
        capsys=capsys,
    )
    assert done.code == 0, done.err
    results = json.loads((workdir / "all_results.json").read_text())
    suffixes = ["", "_mm"] if name == "mnli" else [""]
    for suffix in suffixes:
        assert results[f"eval_samples{suffix}"] == ROWS["validation"]
        assert f"eval_loss{suffix}" in results and f"eval_{row.metric}{suffix}" in results
    assert f"best: {row.metric} " in done.err
    config = json.loads((workdir / "model" / "config.json").read_text())
    if row.labels:
        assert config["id2label"] == {str(i): label for i, label in enumerate(row.labels)}
        assert config["problem_type"] == "single_label_classification"
    else:
        assert config["problem_type"] == "regression"

    # A trained folder answers the same as the run did, on every validation split.
    again = call("evaluate", f"--workdir={workdir}", capsys=capsys)
    assert again.code == 0, again.err
    for suffix in suffixes:
        key = f"eval_{row.metric}{suffix}"
        # Between -1 and 1, of float32 logits from another program: rounding is a few 1e-7 of 1.
        assert json.loads(again.out)[key] == pytest.approx(results[key], abs=1e-6, nan_ok=True)

    # Test labels are hidden: never scored.
    hidden = call("evaluate", f"--workdir={workdir}", "--split=test", capsys=capsys)
    assert hidden.code == 3 and "hidden labels" in hidden.err

    # They are predicted, under the file names of transformers' run_glue.
    done = call("predict", f"--workdir={workdir}", "--split=test", capsys=capsys)
    assert done.code == 0, done.err
    names = [f"predict_results_{name}.txt"]
    if name == "mnli":
        names.append("predict_results_mnli-mm.txt")
        done = call("predict", f"--workdir={workdir}", "--split=ax", capsys=capsys)
        assert done.code == 0, done.err
        names.append("predict_results_mnli-ax.txt")
        output = f"--output={tmp_path / 'x.jsonl'}"
        done = call("predict", f"--workdir={workdir}", "--split=test", output, capsys=capsys)
        assert done.code == 2 and "test_matched" in done.err
    for file in names:
        header, *lines = (workdir / file).read_text().splitlines()
        assert header == "index\tprediction"
        assert [line.split("\t")[0] for line in lines] == [str(i) for i in range(ROWS["test"])]
        answers = {line.split("\t")[1] for line in lines}
        if row.labels:
            assert answers <= set(row.labels)
        else:
            assert all(len(answer.split(".")[1]) == 3 for answer in answers)  # %3.3f


def test_a_checkpoint_that_knows_the_labels_keeps_its_order(glue, tiny_bert, tmp_path, capsys):
    """MNLI checkpoints number their labels in every order: names decide, not ids."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    names = ["contradiction", "entailment", "neutral"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    done = call(
        "train",
        "--config=configs/glue.py:mnli",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.path={folder}",
        f"--config.data.dataset={glue}",
        "--config.train.steps=1",
        "--config.mesh.data=1",
        capsys=capsys,
    )
    assert done.code == 0, done.err
    assert "labels contradiction, entailment, neutral" in done.err
    exported = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert exported["id2label"] == {"0": names[0], "1": names[1], "2": names[2]}
