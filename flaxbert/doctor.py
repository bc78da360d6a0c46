"""python -m flaxbert.doctor [--workdir=DIR] [--json]

Checks versions, environment and devices, and a run if one is named: what is right, what is unusual,
what will fail and what to do. It changes nothing and does not disturb a run in progress. The exit
code is 0 without failures (warnings do not count), else that of the first one: 2 for the
installation, 4 for a checkpoint, 70 for wrong numbers. --json prints the same for an issue report,
without home directory, tokens or passwords.
"""

from __future__ import annotations

from flaxbert.shell import signals

if __name__ == "__main__":
    signals.install()  # before the slower imports

import sys
from typing import Any

from absl import flags

from flaxbert.shell import cli


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", "", "A run to check.", flag_values=values)

    flags.DEFINE_bool("json", False, "JSON, for an issue report.", flag_values=values)


def main(values: Any, stop: cli.StopSignal) -> None:
    from flaxbert.diagnose import devices, run_folder, versions
    from flaxbert.diagnose.findings import as_json, as_lines, exit_code, guarded

    path = values.workdir
    gpu, tpu = devices.has_nvidia(), devices.has_tpu()
    checks = [
        (versions.SUBJECT, lambda: versions.check(gpu)),
        (versions.ENVIRONMENT, versions.check_environment),
        (devices.SUBJECT, lambda: devices.check(gpu=gpu, tpu=tpu)),
    ]
    if path:
        checks.append((run_folder.SUBJECT, lambda: run_folder.check(path)))
    findings = [finding for subject, check in checks for finding in guarded(subject, check)]
    if values.json:
        print(as_json(findings))
    else:
        print("\n".join(as_lines(findings)))
    sys.stdout.flush()
    if code := exit_code(findings):
        sys.exit(code)


def command() -> None:
    """Runs `python -m flaxbert.doctor` on sys.argv."""
    cli.run(main, define_flags, __doc__)


if __name__ == "__main__":
    command()
