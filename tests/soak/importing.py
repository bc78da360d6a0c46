"""Changing modules as they are imported, for the sitecustomize files beside this one.

Nothing else is imported for it, so a command starts as it does for its user.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def after_import(changes: dict[str, Callable[[Any], None]]) -> None:
    """Calls what stands there for a module once that has been executed."""
    sys.meta_path.insert(0, _Finder(changes))


class _Finder:
    def __init__(self, changes: dict[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._changes:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self._changes[name](module)

        spec.loader.exec_module = exec_module  # pyright: ignore[reportAttributeAccessIssue]
        return spec
