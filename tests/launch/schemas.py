"""The published schemas of the manifests, out of packages that are fetched but never installed.

`make test-slow` puts them beside the environment: SkyPilot would bring a hundred packages. Of
SkyPilot only the file with its schemas is run, with stand-ins for what it imports beside constants.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ("skypilot==0.14.1", "kubeflow-trainer-api==2.3.0")
FOLDER = Path(os.environ.get("LAUNCH_SCHEMAS", Path(sys.prefix) / "schemas"))

_SKYPILOT = """
import importlib, json, sys, types
from pathlib import Path
from unittest import mock
root = Path(sys.argv[1])
for name in ("sky", "sky.skylet", "sky.utils"):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [str(root.joinpath(*name.split(".")))]
    module.__version__ = module.__commit__ = "0"
for name in (
    "adaptors", "adaptors.common", "sky_logging", "setup_files", "setup_files.dependencies",
    "server", "skylet.configs", "skylet.log_lib", "utils.message_utils", "utils.ux_utils",
):
    sys.modules[f"sky.{name}"] = mock.MagicMock()
schemas = importlib.import_module("sky.utils.schemas")
got = {"task": schemas.get_task_schema(), "resources": schemas.get_resources_schema()}
print(json.dumps(got, default=str))
"""


def is_there() -> bool:
    return (FOLDER / "sky").is_dir() and (FOLDER / "kubeflow_trainer_api").is_dir()


def skypilot() -> dict[str, dict]:
    """Returns SkyPilot's JSON schemas of a task and of its resources."""
    done = subprocess.run(
        [sys.executable, "-c", _SKYPILOT, str(FOLDER)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def jobset_model():
    """Returns the published model of a JobSet, which holds those of Job and pod."""
    sys.path.insert(0, str(FOLDER))
    try:
        models = importlib.import_module("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    finally:
        sys.path.remove(str(FOLDER))
    return models.JobsetV1alpha2JobSet


if __name__ == "__main__":
    print(" ".join(PACKAGES))
