"""Checks the package's annotations, shapes included, while the tests run.

`pytest --jaxtyping-packages=flaxbert,tests.typecheck.check` wraps every function of flaxbert in
this process; commands that tests start as processes run unchecked, as users run them. An int is a
float here, as PEP 484 has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """For calls with wrong types whose own error is tested: users have no checker before it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
