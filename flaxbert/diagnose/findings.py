"""Findings, and the report that they make: for people, or as JSON for an issue report.

Note: personal information is removed here from all output: the home directory becomes ~, and users
and passwords in URLs and tokens are replaced.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flaxbert.shell.console import printable

OK, WARNING, FAILURE = "ok", "warning", "failure"
_SIGNS = {OK: "ok", WARNING: "!!", FAILURE: "FAIL"}
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_TOKENS = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\b(?i:bearer)\s+\S+")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a check. `code` is the exit code of a failure (see cli.py)."""

    subject: str  # "versions", "devices", ...
    status: str  # OK, WARNING or FAILURE
    said: str
    do: str = ""  # what to do about it
    code: int = 2
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def guarded(subject: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Runs a check; an exception becomes a finding, so that the other checks still run."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:  # a broken installation can break anything
        line = str(error).strip().splitlines()[:1]
        said = f"this check failed: {type(error).__name__}: {''.join(line)}"
        found.append(Finding(subject, FAILURE, said, "Please report it, with --json.", code=70))
    return found


def exit_code(findings: Iterable[Finding]) -> int:
    """Returns 0 without failures, else the code of the first one."""
    return next((finding.code for finding in findings if finding.status == FAILURE), 0)


def as_lines(findings: list[Finding]) -> list[str]:
    """Returns the report: a line per finding under its subject, and below it what to do."""
    lines: list[str] = []
    subject = ""
    for finding in findings:
        if finding.subject != subject:
            subject = finding.subject
            lines += ([""] if lines else []) + [subject]
        lines.append(f"  {_SIGNS[finding.status]:<5}{private(finding.said)}")
        if finding.do:
            lines.append(f"       -> {private(finding.do)}")
    count = {status: sum(f.status == status for f in findings) for status in _SIGNS}
    lines += ["", f"{count[FAILURE]} failures, {count[WARNING]} warnings, {count[OK]} ok"]
    return [printable(line) for line in lines]


def as_json(findings: list[Finding]) -> str:
    """Returns {"exit_code", "findings": [...]} without personal information."""
    values = [dataclasses.asdict(finding) for finding in findings]
    for value, finding in zip(values, findings, strict=True):
        if finding.status != FAILURE:
            del value["code"]
    return json.dumps(
        _private({"exit_code": exit_code(findings), "findings": values}), indent=1, default=str
    )


def private(text: str) -> str:
    """Returns the text without home directory, user information in URLs, and tokens."""
    home = str(Path.home())
    if home != "/":
        text = text.replace(home, "~")
    return _TOKENS.sub("[token]", _USER_IN_URL.sub("[user]@", text))


def _private(value: Any) -> Any:
    if isinstance(value, str):
        return private(value)
    if isinstance(value, dict):
        return {private(str(name)): _private(some) for name, some in value.items()}
    if isinstance(value, (list, tuple)):
        return [_private(some) for some in value]
    return value
