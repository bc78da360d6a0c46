"""What every method holds to; a file in flaxbert/methods is a case of each of these tests."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from flaxbert.config import Method, Optim, make_config
from flaxbert.heads import abstract_params, init_params
from flaxbert.loop.mesh import make_mesh
from flaxbert.loop.step import abstract_state, init_state
from flaxbert.methods import merged, method_for, params_of, split
from flaxbert.optim import optimizer_for
from flaxbert.registry import members
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.weights.table import flatten
from tests.loop.harness import ALL_AT_ONCE, BERT, ONE_DEVICE, examples, means, run

# Options to try beside the default ones, by the name of the case.
OPTIONS: dict[str, dict[str, Any]] = {
    "biases": {"name": "freeze", "freeze": {"trained": "bias"}},
    "above layer 0": {"name": "freeze", "freeze": {"trained": "all", "layers": 1}},
}

CASES = {name: {"name": name} for name in members("methods")} | OPTIONS
# One worker has the programs of tests/loop/test_equivalence.py, which are of this one.
in_its_worker = {"full": pytest.mark.xdist_group("updates in float64")}
every_method = pytest.mark.parametrize("case", CASES)


def section(case: str) -> Method:
    return make_config({"method": CASES[case]}).method


def is_trained(case: str) -> dict[str, bool]:
    method = method_for(section(case), BERT)
    return {path: method.is_trained(path) for path in flatten(abstract_params(BERT))}


def bits(tree: Any) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(tree).items()}


@every_method
def test_the_start_is_the_model_itself(case):
    params = jax.device_get(init_params(BERT, 0))
    trained, frozen = split(params, method_for(section(case), BERT))
    assert bits(merged(trained, frozen)) == bits(params)
    assert flatten(trained).keys() == {path for path, yes in is_trained(case).items() if yes}
    state = init_state(
        params,
        make_mesh(ONE_DEVICE, BERT),
        optimizer_for(Optim(), 10),
        method_for(section(case), BERT),
    )
    assert bits(params_of(state)) == bits(params)


@every_method
def test_only_what_is_trained_changes(case):
    """And every array of it does; what does not has no moments."""
    params = bits(jax.device_get(init_params(BERT, 0)))
    _, state = run(examples(), updates=6, method=section(case))
    after = bits(params_of(jax.device_get(state)))
    assert {path: after[path] != params[path] for path in params} == is_trained(case)
    assert flatten(state["optimizer"]["mu"]).keys() == flatten(state["params"]).keys()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=in_its_worker.get(case, ())) for case in CASES]
)
def test_padded_accumulated_and_sharded_it_is_the_same_update(case, x64, capfd):
    """All at once, for the price of two programs; in float64 the order of sums differs only."""
    settings = {"updates": 6, "dtype": "float64", "method": section(case)}
    plain, plain_state = run(examples(), **settings)
    other, other_state = run(examples(), **settings, **ALL_AT_ONCE)
    # XLA warns when it has to replicate an array to reshard it; our program gives no reason to.
    assert "rematerialization" not in capfd.readouterr().err.lower()
    assert np.abs(means(other) / means(plain) - 1).max() <= 1e-12
    ours, theirs = flatten(params_of(other_state)), flatten(params_of(plain_state))
    differences = [np.abs(np.asarray(ours[p]) - np.asarray(theirs[p])).max() for p in theirs]
    # Steps of 1e-3: rounding of 1e-16 in a gradient, divided by its own size, stays far below.
    assert max(differences) <= 1e-9


@every_method
def test_a_resume_goes_on_to_the_same_bits(case, tmp_path):
    """Saved and restored after update 3; what is frozen is there once for two checkpoints."""
    saved = Checkpoints(tmp_path, keep=2)
    mesh, method = make_mesh(ONE_DEVICE, BERT), method_for(section(case), BERT)
    abstract = abstract_state(abstract_params(BERT), mesh, optimizer_for(Optim(), 6), method)

    def save_and_restore(step: int, state: Any, batch: Any) -> Any:
        if step not in (2, 3):
            return state, batch
        saved.save(step, state, {"step": step})
        saved.wait()
        return Checkpoints(tmp_path, keep=2).restore(step, abstract), batch

    _, through = run(examples(), updates=6, method=section(case), corrupt=save_and_restore)
    _, whole = run(examples(), updates=6, method=section(case))
    assert bits(through) == bits(whole)
    frozen = bool(jax.tree.leaves(whole["frozen"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"] + ["frozen"] * frozen
    saved.close()
