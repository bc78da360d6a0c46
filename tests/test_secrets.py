"""No secret of the environment stands in any byte that a command prints or writes.

Real processes get environment variables with values that occur nowhere else; then every byte that
they left is searched for these, in the forms in which a leak would most likely appear.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.parse
import zlib
from pathlib import Path

import pytest

from tests.commands import ROOT, start, train_flags

# URLs with a user and a password: what stands between :// and @ must not be seen.
URLS = ("HF_ENDPOINT", "HTTPS_PROXY")

NAMES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "WANDB_API_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "SOME_OTHER_PASSWORD",
)

# A run whose third batch raises: its traceback passes through frames that hold everything.
CRASH = """
import os, sys
from flaxbert import train
from flaxbert.data import batches
real = batches.train_batch
def broken(*args, step, **kwargs):
    everything = dict(os.environ)
    if step == 2:
        raise RuntimeError("provoked")
    return real(*args, step=step, **kwargs)
batches.train_batch = broken
train.command()
"""


def _canaries() -> dict[str, str]:
    # Characters that URLs, JSON and shells write otherwise; a token goes into a header as it is.
    return {
        name: f"hf_{secrets.token_hex(12)}" if "TOKEN" in name
        else f'{secrets.token_hex(12)}/+="\\ é{secrets.token_hex(12)}'
        for name in NAMES
    }  # fmt: skip


def _forms(value: str) -> dict[str, bytes]:
    """Returns the byte strings that give a value away, whatever stands before and after it."""
    raw = value.encode()
    forms = {
        "plain": raw,
        "JSON": json.dumps(value)[1:-1].encode(),
        "JSON, not ASCII": json.dumps(value, ensure_ascii=False)[1:-1].encode(),
        "repr": repr(value)[1:-1].encode(),
        "URL": urllib.parse.quote(value, safe="").encode(),
        "form": urllib.parse.quote_plus(value).encode(),
        "hex": raw.hex().encode(),
        "UTF-16": value.encode("utf-16-le"),
    }
    for offset in range(3):  # three bytes make four characters: it matters where the value begins
        start, stop = -(-8 * offset // 6), -((offset + len(raw)) % 3) or None
        for name, encode in (("", base64.b64encode), (" for URLs", base64.urlsafe_b64encode)):
            # Cut off the characters that also depend on the neighbours.
            coded = encode(bytes(offset) + raw)[start + bool(offset) : stop and stop - 4]
            forms[f"base64{name} at {offset}"] = coded
    return forms


def _leaks(outputs: dict[str, bytes], canaries: dict[str, str]) -> list[str]:
    """Returns where which variable's value stands; what is compressed is opened."""
    found = []
    for where, data in outputs.items():
        with contextlib.suppress(zlib.error):  # 32: gzip, or zlib as in compiled programs
            data += zlib.decompress(data, 32 + zlib.MAX_WBITS)
        for name, value in canaries.items():
            found += [
                f"{name} ({f}) in {where}" for f, some in _forms(value).items() if some in data
            ]
    return found


def _files(*folders: Path) -> dict[str, bytes]:
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", NAMES)
def test_a_leak_is_found(name):
    canaries = _canaries()
    value = canaries[name]
    for before in ("", "a", "ab", "abc", "Bearer "):
        text = f"{before}{value}, and more"
        leaks = {
            "plain": text.encode(),
            "JSON": json.dumps({"environment": text}).encode(),
            "repr": repr({"environment": text}).encode(),
            "URL": urllib.parse.urlencode({"token": text}).encode(),
            "path": urllib.parse.quote(text, safe="").encode(),
            "hex": text.encode().hex().encode(),
            "base64": base64.b64encode(text.encode()),
            "base64 for URLs": base64.urlsafe_b64encode(text.encode()),
            "gzip": gzip.compress(text.encode()),
            "zlib": zlib.compress(text.encode()),
        }
        for form, data in leaks.items():
            assert _leaks({form: data}, {name: value}), (form, before)
            others = {other: some for other, some in canaries.items() if other != name}
            assert not _leaks({form: data}, others)


def stop_while_training(process: subprocess.Popen) -> None:
    """Sends SIGTERM once the process says that it has compiled; what it said so far stays."""
    assert process.stderr is not None
    lines = []
    while "compiled" not in (line := process.stderr.readline()):
        assert line, "".join(lines)
        lines.append(line)
    process.send_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_secret_in_any_output_byte(tiny_bert, reviews, tmp_path):
    canaries = _canaries()
    folders = [tmp_path / name for name in ("out", "home", "tmp", "compiled")]
    out, home, temporary, compiled = folders
    for folder in folders:
        folder.mkdir()
    urls = {name: f"user{secrets.token_hex(4)}:{secrets.token_hex(12)}" for name in URLS}
    environment = {
        **canaries,
        # Port 9 of this machine: nobody answers.
        **{name: f"http://{user}@127.0.0.1:9" for name, user in urls.items()},
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "TMPDIR": str(temporary),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_NUM_CPU_DEVICES": "1",
    }
    said: dict[str, bytes] = {}

    def run(name: str, code: int | None, process: subprocess.Popen) -> str:
        stdout, stderr = process.communicate(timeout=200)
        assert code is None or process.returncode == code, stderr
        said[f"{name}'s stdout"], said[f"{name}'s stderr"] = stdout.encode(), stderr.encode()
        return stderr

    def flags(name: str, train: Path, **fields: object) -> list[str]:
        return train_flags(tiny_bert, train, out / name, data__validation=reviews["dev"], **fields)

    trained = flags("run", reviews["train"], train__steps=1, log__every=1)
    run("train", 0, start("train", *trained, env=environment))
    run("evaluate", 0, start("evaluate", f"--workdir={out / 'run'}", env=environment))
    answers = [f"--input={reviews['test']}", f"--output={out / 'answers.jsonl'}"]
    model = f"--model={out / 'run' / 'model'}"
    run("predict", 0, start("predict", model, *answers, env=environment))
    copy = [f"--from={out / 'run'}", f"--to={out / 'copy'}", "--format=orbax"]
    run("convert", 0, start("convert", *copy, env=environment))
    (tmp_path / "broken.csv").write_text("text,label\na film,positive\nanother,\n")
    bad = start("train", *flags("bad", tmp_path / "broken.csv"), env=environment)
    assert "the label is missing" in run("failing train", 3, bad)
    crash = subprocess.Popen(
        [sys.executable, "-c", CRASH, *flags("crash", reviews["train"], checkpoint__every=1)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    traceback = run("crash", 70, crash)
    assert "Traceback (most recent call last)" in traceback and "provoked" in traceback

    interrupted = start(
        "train", *flags("stopped", reviews["train"], train__steps=500), env=environment
    )
    stop_while_training(interrupted)
    assert "stopped by a signal" in run("interrupted train", 75, interrupted)
    for name in ("doctor", "doctor --json"):
        look = [f"--workdir={out / 'crash'}", *name.split()[1:]]
        run(name, 0, start("doctor", *look, env=environment))
        assert "HF_TOKEN" in said[f"{name}'s stdout"].decode()
    online = environment | {"HF_HUB_OFFLINE": "0"}
    absent = ["--model=someone/model", f"--input={reviews['test']}", "--output=-"]
    assert "cannot be reached" in run("no hub", 4, start("predict", *absent, env=online))
    bucket = ["--config=configs/text.py", "--workdir=gs://bucket/run", *trained[2:]]
    run("a bucket", None, start("train", *bucket, env=environment))
    run("no file", 4, start("convert", f"--from={out}", f"--to={out / 'none'}", env=environment))

    files = _files(*folders)
    written = {Path(name).name for name in files}
    assert {"config.json", "run.json", "model.safetensors", "answers.jsonl", "README.md"} <= written
    assert any(name.startswith("events.out.tfevents") for name in written)
    assert (out / "crash" / "checkpoints" / "2").is_dir() and any(compiled.iterdir())
    assert {"facts.json", "metrics.jsonl", "manifest.json", "data_report.json"} <= written
    passwords = {name: user.partition(":")[2] for name, user in urls.items()}
    assert _leaks(said | files, canaries | passwords) == []
