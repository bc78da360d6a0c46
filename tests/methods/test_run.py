"""A run that trains a part: started, resumed, converted and evaluated by the commands."""

from __future__ import annotations

import shutil

import numpy as np

from tests.commands import call, final_state, train_flags


def test_a_run_that_trains_biases_resumes_and_leaves_as_a_whole_model(
    tiny_bert, reviews, tmp_path, capsys
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def train(workdir, **fields):
        flags = train_flags(
            tiny_bert,
            reviews["train"],
            workdir,
            data__validation=reviews["dev"],
            method__name="freeze",
            method__freeze__trained="bias",
            optim__name="sgd",
            checkpoint__every=3,
            **fields,
        )
        return call("train", *flags, capsys=capsys)

    done = train(whole)
    assert done.code == 0, done.err
    assert "M of them are trained" in done.err
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"3", "6", "frozen"}
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    for name in ("all_results.json", "train_results.json", "eval_results.json"):
        (cut / name).unlink()
    resumed = train(cut)
    assert resumed.code == 0 and "after update 3 of 6" in resumed.err, resumed.err
    ours, theirs = final_state(cut), final_state(whole)
    assert all(np.array_equal(ours[path], theirs[path], equal_nan=True) for path in theirs)
    assert not any("kernel" in path and "bert/encoder" in path for path in theirs)

    other = train(cut, method__freeze__layers=0)
    assert other.code == 2 and "config.method.freeze.layers: -1 -> 0" in other.err
    made = [f"--from={whole / 'checkpoints' / '6'}", f"--to={tmp_path / 'model'}"]
    done = call("convert", *made, capsys=capsys)
    assert done.code == 0, done.err
    weights = "model.safetensors"
    assert (tmp_path / "model" / weights).read_bytes() == (whole / "model" / weights).read_bytes()
    assert call("doctor", f"--workdir={whole}", capsys=capsys).code == 0
    (whole / "checkpoints" / "frozen" / "state" / "_METADATA").write_text("{}")
    done = call("doctor", f"--workdir={whole}", capsys=capsys)
    assert done.code == 4 and "parameters that are not trained" in done.out
    done = call("evaluate", f"--workdir={whole}", capsys=capsys)
    assert done.code == 0, done.err
