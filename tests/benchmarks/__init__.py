"""Loads programs of benchmarks/, which is a folder of scripts and no package."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from tests.commands import ROOT

BENCHMARKS = ROOT / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there, and so do the other programs
    spec.loader.exec_module(module)
    return module
