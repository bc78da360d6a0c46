"""What every source of data provides, and what a task decides."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

from flaxbert.config import Data, make_config
from flaxbert.data import sources
from flaxbert.data.sources import Source, open_data, tasks, with_task
from flaxbert.errors import ConfigError

FIELDS = {field.name for field in dataclasses.fields(Data)}
FILES = [module.name for module in pkgutil.iter_modules(sources.__path__)]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_a_source(name):
    source = importlib.import_module(f"{sources.__name__}.{name}")
    assert isinstance(source, Source) and source.TASKS
    for task in source.TASKS.values():
        assert task.fields.keys() <= FIELDS and set(task.needless) <= FIELDS


@pytest.mark.parametrize("name", tasks())
def test_every_task_can_be_trained_or_says_what_to_do(name):
    task = tasks()[name]
    if task.elsewhere:
        with pytest.raises(ConfigError, match=f"config.data.task={name}: .* Train "):
            with_task(Data(task=name))
        return
    data = with_task(Data(task=name))
    make_config({"data": dataclasses.asdict(data)})  # values that a config may have
    assert {field: getattr(data, field) for field in task.fields} == task.fields
    assert data.dataset == task.dataset
    assert with_task(Data(task=name, max_length=7)).max_length == 7
    if name != "text":
        with pytest.raises(ConfigError, match=f"config.data.text has no effect with .*={name}"):
            with_task(Data(task=name, text="other"))
        for field in task.needless:
            with pytest.raises(ConfigError, match=f"config.data.{field} has no effect"):
                with_task(dataclasses.replace(Data(task=name), **{field: "x"}))


def test_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'rotten_tomatoes'") as caught:
        with_task(Data(task="rotten_tomatos"))
    assert caught.value.exit_code == 2 and "'rotten_tomatos'" in str(caught.value)


def test_a_config_without_data():
    with pytest.raises(ConfigError, match=r"config\.data\.train is empty: name the training file"):
        open_data(Data())
