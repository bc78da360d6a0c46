"""Versions: installed packages, whether they fit together, and pairs with known defects; and the
environment variables that matter.

Ranges are read from the metadata of installed packages, so no range is repeated here. Note: pip
accepts some pairs that do not work; these are in a table.
"""

from __future__ import annotations

import os
import platform
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

import flaxbert
from flaxbert.diagnose.findings import FAILURE, OK, WARNING, Finding

SUBJECT, ENVIRONMENT = "versions", "environment"
_SHOWN = (
    "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "flax", "optax",
    "orbax-checkpoint", "tensorstore", "numpy", "transformers", "tokenizers", "datasets",
    "huggingface-hub", "safetensors", "pyarrow",
)  # fmt: skip


def bad_pairs(versions: dict[str, Version], gpu: bool) -> Iterator[Finding]:
    """Yields the combinations of versions that can be installed but have a defect.

    Sources: the release notes and issues of jax, jaxlib, XLA and flax.
    """

    def between(name: str, low: str, high: str) -> bool:
        found = versions.get(name)
        return found is not None and Version(low) <= found < Version(high)

    jaxlib = versions.get("jaxlib")
    plugins = [versions.get(name) for name in ("jax-cuda12-plugin", "jax-cuda13-plugin")]
    for is_here, status, said, do in (
        (
            between("jax", "0.11.1", "99") and between("flax", "0", "0.12.9"),
            FAILURE,
            "flax before 0.12.9 does not import with jax 0.11.1 and later",
            'pip install "flax>=0.12.9,<0.13" (Python 3.12 or later), or "jax<0.11"',
        ),
        (
            gpu and between("jaxlib", "0.10.2", "0.11.1"),
            WARNING,
            "on GPUs jaxlib 0.10.2 to 0.11.0 compiles the embedding's gradient to a loop that is "
            "450 to 2000 times slower (XLA issue 46225)",
            'with Python 3.12 or later: pip install -U "jax[cuda12]>=0.11.2,<0.13"',
        ),
        (
            between("jaxlib", "0.11.1", "0.11.2"),
            WARNING,
            "jaxlib 0.11.1 copies whole buffers for small updates in loops (slow on CPUs)",
            'pip install -U "jax>=0.11.2,<0.13"',
        ),
        (
            jaxlib and any(p and p.release[:3] != jaxlib.release[:3] for p in plugins),
            FAILURE,
            "the CUDA plugin has another version than jaxlib: JAX ignores it and computes on the "
            "CPU",
            'install both together: pip install -U "jax[cuda12]"',
        ),
        (
            any(n in versions and versions[n].is_prerelease for n in ("jax", "jaxlib")),
            WARNING,
            "a development version of jax: wrong sums over devices were seen in some of them (jax "
            "issue 40830)",
            'pip install -U "jax<0.13", without --pre',
        ),
    ):
        if is_here:
            yield Finding(SUBJECT, status, said, do)


def check(gpu: bool) -> Iterator[Finding]:
    """Yields the versions, and every conflict; `gpu` says whether there is an NVIDIA GPU."""
    versions = _installed()
    shown = {"python": platform.python_version(), "flaxbert": flaxbert.__version__}
    shown |= {name: str(versions[name]) for name in _SHOWN if name in versions}
    yield Finding(
        SUBJECT, OK, ", ".join(f"{name} {number}" for name, number in shown.items()), facts=shown
    )
    wrong = list(disagreements(versions))
    for said in wrong:
        yield Finding(SUBJECT, FAILURE, said, "pip install -U flaxbert installs matching versions")
    if not wrong:
        yield Finding(SUBJECT, OK, "every package is in the range that flaxbert was tested with")
    yield from bad_pairs(versions, gpu)


_MATTERS = re.compile(
    r"(JAX|XLA|LIBTPU|TPU|HF|NCCL|FLAXBERT|TOKENIZERS)_.*|LD_LIBRARY_PATH|CUDA_VISIBLE_DEVICES"
    r"|XDG_CACHE_HOME|TMPDIR|OMP_NUM_THREADS|(?i:https?|all|no)_proxy"
)
_SECRET = re.compile(r"(?i)token|key|secret|password|credential|proxy|auth")


def check_environment() -> Iterator[Finding]:
    """Yields the variables that matter; for secrets only that they are set."""
    values = {
        name: "set" if _SECRET.search(name) else value
        for name, value in sorted(os.environ.items())
        if _MATTERS.fullmatch(name)
    }
    said = ", ".join(f"{name}={value}" for name, value in values.items())
    yield Finding(ENVIRONMENT, OK, said or "no variable that matters is set", facts=values)


def disagreements(versions: dict[str, Version]) -> Iterator[str]:
    """Yields "jax 0.9.0: flaxbert needs >=0.10", for flaxbert and what it is built on."""
    for owner, requirements in (
        ("flaxbert", _own_requirements()),
        *((name, metadata.requires(name) or []) for name in _SHOWN if name in versions),
    ):
        for text in requirements:
            try:
                wanted = Requirement(text)
            except InvalidRequirement:
                continue
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            found = versions.get(wanted.name.lower().replace("_", "-"))
            if found is None:
                if owner == "flaxbert":
                    yield f"{wanted.name} is not installed: flaxbert needs {text}"
            elif not wanted.specifier.contains(found, prereleases=True):
                yield f"{wanted.name} {found}: {owner} needs {wanted.specifier}"


def _own_requirements() -> list[str]:
    try:
        return metadata.requires("flaxbert") or []
    except metadata.PackageNotFoundError:  # a clone that was never installed
        project = Path(flaxbert.__file__).parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]


def _installed() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        try:
            found.setdefault(name, Version(distribution.version))  # the first one is imported
        except (InvalidVersion, TypeError):
            continue
    return found
