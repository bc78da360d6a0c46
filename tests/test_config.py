"""The config schema: types, ranges, names, what a resume may change, derived seeds."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flaxbert.config import (
    BY_NAME,
    Config,
    Optim,
    Seeds,
    default_config,
    flatten,
    make_config,
    resume_differences,
    seed_for,
    to_dict,
)
from flaxbert.errors import ConfigError
from flaxbert.registry import declared, member, members, options_for

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def test_defaults_build_and_survive_json():
    config = make_config(default_config())
    assert config == Config()
    assert make_config(json.loads(json.dumps(to_dict(config)))) == config


def test_no_default_is_none():
    assert all(value is not None for value in flatten(to_dict(Config())).values())


ARGUMENTS = {"glue": ("mrpc",)}  # what must stand after the colon


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_build_and_comment_every_field(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config(*ARGUMENTS.get(path.stem, ()))
    if path.stem == "text":
        values.data.train = "train.csv"
    assert isinstance(make_config(values), Config)
    text = path.read_text(encoding="utf-8")
    assert "python -m flaxbert.train" in text
    sets = [line for line in text.splitlines() if line.startswith("    config.") and " = " in line]
    assert sets
    assert [line for line in sets if "  # " not in line] == []


def test_the_glue_config_lists_its_tasks():
    from flaxbert.data.sources.glue import GLUE

    path = Path(__file__).parent.parent / "configs" / "glue.py"
    spec = importlib.util.spec_from_file_location("glue", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert list(module.TASKS) == list(GLUE)
    assert {task: module.get_config(task).train.epochs for task in GLUE} == {
        task: 5.0 if task in ("mrpc", "wnli") else 3.0 for task in GLUE
    }
    for wrong in ("", "sst", "ax"):
        with pytest.raises(ValueError, match=r"configs/glue\.py"):
            module.get_config(wrong)


def test_every_field_has_a_comment():
    source = (Path(__file__).parent.parent / "flaxbert" / "config.py").read_text(encoding="utf-8")
    spared = {"seed", "model", "fsdp", "data"}  # the name says it
    for group in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(group.default):
            continue
        for field in dataclasses.fields(group.default):  # type: ignore[arg-type]
            if dataclasses.is_dataclass(field.default):  # the options of a member, see below
                continue
            lines = [line for line in source.splitlines() if line.startswith(f"    {field.name}: ")]
            assert lines
            assert field.name in spared or any("#" in line for line in lines), field.name


MEMBERS = [(section, name) for section, room in BY_NAME.items() for name in members(room)]


@pytest.mark.parametrize(("section", "name"), MEMBERS)
def test_options_of_members_say_what_they_mean_and_may_be(section, name):
    """Read from the source, they are those of the class that the member itself has."""
    said = declared(BY_NAME[section], name)
    module = member(BY_NAME[section], name)
    if said.options is None:
        assert not hasattr(module, "Options")
        return
    options = dataclasses.asdict(module.Options())
    assert dataclasses.asdict(said.options) == options
    assert options_for(module, default_section(section, name)) == module.Options()
    assert all(said.comments[field] for field in options)
    kinds = {field: type(value) for field, value in options.items()}
    words = {field for field, kind in kinds.items() if kind is str and options[field]}
    assert said.choices.keys() == words  # what is "" by default is anything a user writes
    assert said.ranges.keys() == {field for field, kind in kinds.items() if kind in (int, float)}


def default_section(section: str, name: str):
    return getattr(make_config({section: {"name": name}}), section)


def test_options_are_found_by_name():
    config = make_config({"optim": {"name": "sgd", "sgd": {"momentum": 0.5}}})
    assert options_for(member("optim", "sgd"), config.optim).momentum == 0.5
    assert options_for(member("optim", "adamw"), Config().optim) is Config().optim


def test_the_config_does_not_import_jax():
    """A wrong flag is told before JAX is there, which takes seconds."""
    program = "import sys, flaxbert.config; print(sorted({'jax', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optm": {}}, r"config.optm: there is no such field. Did you mean config.optim\?"),
        ({"optim": {"learning_rat": 1.0}}, r"Did you mean config.optim.learning_rate\?"),
        ({"optim": 3}, "expected fields, got 3"),
        ({"train": {"batch_size": 1.5}}, "expected an integer, got 1.5"),
        ({"train": {"batch_size": True}}, "expected an integer, got True"),
        ({"train": {"batch_size": 0}}, "at least 1"),
        ({"optim": {"learning_rate": "x"}}, "expected a number"),
        ({"optim": {"learning_rate": float("nan")}}, "greater than 0"),
        ({"optim": {"learning_rate": 0.0}}, "greater than 0"),
        ({"optim": {"schedule": "cosin"}}, "Did you mean 'cosine'"),
        ({"optim": {"name": "sdg"}}, "config.optim.name: .* Did you mean 'sgd'"),
        ({"optim": {"sgd": {"momentun": 0}}}, r"Did you mean config.optim.sgd.momentum\?"),
        (
            {"optim": {"name": "sgd", "sgd": {"momentum": 1.0}}},
            "optim.sgd.momentum: .* at most",
        ),
        ({"optim": {"name": "sgd", "sgd": {"nesterov": 1}}}, "expected True or False, got 1"),
        ({"optim": {"sgd": {"momentum": 0.5}}}, "momentum=0.5 has no effect: .* is 'adamw'"),
        ({"optim": {"name": "sgd", "b1": 0.5}}, "config.optim.b1=0.5 has no effect: .* is 'sgd'"),
        ({"model": {"dtype": None}}, "expected a string"),
        ({"loss": {"class_weights": [1.0, "a=2"]}}, "expected numbers, or names with numbers"),
        ({"loss": {"class_weights": [1.0, None]}}, "expected a number"),
        ({"loss": {"class_weights": [1.0, -1.0]}}, "positive numbers"),
        ({"loss": {"class_weights": [1.0, 0.0]}}, "positive numbers"),
        ({"loss": {"class_weights": [1.0, float("nan")]}}, "positive numbers"),
        ({"loss": {"class_weights": [1.0, 1e-24]}}, "numbers from 1e-06"),
        ({"loss": {"class_weights": [1.0, 1e20]}}, "only their ratios matter"),
        ({"loss": {"label_smoothing": 1.0}}, "label_smoothing"),
        ({"mesh": {"data": -1, "fsdp": -1}}, "at most one -1"),
        ({"mesh": {"data": 0}}, "positive sizes"),
        ({"data": {"validation": "a", "validation_fraction": 0.1}}, "exclude each other"),
        ({"train": {"patience": 1}}, "needs validation data"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_bad_values_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(changes)
    assert caught.value.exit_code == 2


def test_integers_count_as_numbers():
    assert make_config({"optim": {"warmup": 100}}).optim == Optim(warmup=100.0)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


def test_a_resume_may_change_what_does_not_touch_learning():
    old = Config()
    new = make_config({"log": {"every": 1}, "checkpoint": {"keep": 9}, "mesh": {"data": 2}})
    assert resume_differences(old, new) == []
    new = make_config({"seed": 4, "data": {"packing": "pad"}})
    assert resume_differences(old, new) == [("seed", 0, 4), ("data.packing", "pack", "pad")]


def test_seeds_are_derived_apart_and_can_be_set_alone():
    purposes = ("init", "data", "dropout")
    derived = {
        (seed, purpose): seed_for(Config(seed=seed), purpose)
        for seed in range(50)
        for purpose in purposes
    }
    assert len(set(derived.values())) == len(derived)
    assert all(0 <= value < 2**32 for value in derived.values())
    own = Config(seed=0, seeds=Seeds(data=7))
    assert seed_for(own, "data") == 7
    assert seed_for(own, "dropout") == seed_for(Config(), "dropout")
