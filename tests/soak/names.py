"""Hostile names wherever a user, a file or a hub can put one: nothing is written outside.

    python -m tests.soak.names --names=10000 --output=FILE.json

Each name goes to some of the places that take one, drawn by chance: workdirs, config arguments,
labels, columns, data files, hub ids, revisions, shards, tokenizer files, outputs. All is called in
this process under an audit hook, which notes every write outside of one folder; what is said must
be printable, and what is raised must be the package's own. A name depends on the seed and its
number alone, so that a failure can be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.security.guard import Guard
from tests.soak.record import machine, scratch, versions

PARTS = [
    "..", "../..", "/", "//", "\\", "..\\..", "/etc/passwd", "/tmp/x", "~", "~root", "$HOME",
    "`id`", "$(id)", ";id", "|id", "&", "\u0000", "\n", "\r\n", "\t", " ", "-", "--", "--help",
    "-rf", ".", "...", ".git", ".lock", "con", "NUL", "aux.txt", "COM1", "\u001b[31m",
    "\u001b]0;t\u0007", "\u009b2J", "\u007f", "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028",
    "\u2215", "\u2044", "\uff0f", "\uff0e\uff0e", "\u2024\u2024/", "\ud800", "\udc80",
    "%2e%2e%2f", "%00", "%s", "{0}", "{x}", "*", "?", "[", "]", "<", ">", "\"", "'", ",", ":",
    "=", "#", "@", "file://", "gs://b/", "hf://", "http://h/", "\u0130", "\u00e9", "e\u0301",
    "\u4f60\u597d", "👩‍👩‍👧", "a", "b.csv", "x.jsonl",
    "model", "config.json", "x" * 300, "é" * 200, "LABEL_0", "checkpoints", "main", "refs/pr/1",
    "0" * 40, "|", "---", "</script>", "=1+1",
]  # fmt: skip


def make_name(seed: int, number: int) -> str:
    """Returns name `number`: a few parts, sometimes any characters at all."""
    chance = random.Random(f"{seed}-{number}")
    if number < len(PARTS):
        return PARTS[number]
    parts = chance.choices(PARTS, k=chance.randrange(1, 5))
    if chance.random() < 0.2:
        parts.append("".join(chr(chance.randrange(0x110000)) for _ in range(chance.randrange(9))))
    return chance.choice(["", "", "/", "-"]).join(parts)


class Places:
    """Everything that takes a name; each method is given one, and a folder of its own."""

    def __init__(self, root: Path) -> None:
        from flaxbert.heads import init_params
        from flaxbert.storage.embedded import minilm_directory
        from tests.folders import CONFIG

        self._config, self._params = CONFIG, init_params(CONFIG, 0)
        self._tokenizer = minilm_directory()

    def workdir(self, name: str, folder: Path) -> None:
        from flaxbert.storage.lock import locked
        from flaxbert.storage.workdir import open_workdir, write_json

        root = open_workdir(folder / "runs" / name.replace("/", "-"))
        with locked(root.root / ".lock"):
            write_json(root.config, {})

    def default_workdir(self, name: str, folder: Path) -> None:
        """runs/<config>[-ARG], which is made of what a user typed."""
        from flaxbert.shell import cli
        from flaxbert.storage.workdir import open_workdir

        for argument in (f"configs/glue.py:{name}", f"{name}.py", f"{name}:x"):
            open_workdir(folder / "runs" / cli.config_name([f"--config={argument}"]))

    def config_argument(self, name: str, folder: Path) -> None:
        from flaxbert.shell import cli

        _command(cli.define_config, [f"--config=configs/glue.py:{name}"])

    def config_file(self, name: str, folder: Path) -> None:
        from flaxbert.shell import cli

        _command(cli.define_config, [f"--config={name}"])

    def config_value(self, name: str, folder: Path) -> None:
        from flaxbert.shell import cli

        _command(cli.define_config, ["--config=configs/text.py", f"--config.data.label={name}"])

    def label(self, name: str, folder: Path) -> None:
        """Into config.json, the card, answers in every form, tables for a terminal."""
        import dataclasses

        import numpy as np

        from flaxbert.data.checks import Labels
        from flaxbert.heads.targets import single_label
        from flaxbert.inference import answers
        from flaxbert.metrics.report_lines import report_lines
        from flaxbert.model.bert_config import BertConfig
        from flaxbert.shell.console import say
        from flaxbert.storage.store import store_for
        from flaxbert.weights.card import model_card
        from flaxbert.weights.folder import read_config, write_model

        names = (name, "other", "third")
        config = dataclasses.replace(self._config, id2label=names)
        logits = np.eye(3, dtype=np.float32)
        report = single_label.report(logits, np.arange(3), names)
        for line in report_lines(report):
            say(line)
        card = model_card(config, {"data": name, "started from": name}, {"loss": 0.5})
        write_model(folder / "model", config, self._params, [], card=card)
        assert read_config(folder / "model")[0].id2label == names
        assert isinstance(config, BertConfig)
        told = single_label.readable(logits, names)
        for kind in (answers.JsonLines, answers.Csv, answers.Numbered):
            with store_for(folder).replacing(folder / f"{kind.__name__}.txt") as file:
                kind(file, Labels("single_label", names)).write(told)
        lines = (folder / "JsonLines.txt").read_text(encoding="utf-8").split("\n")
        assert [json.loads(line)["label"] for line in lines[:3]] == list(names)

    def column(self, name: str, folder: Path) -> None:
        from flaxbert.config import Data
        from tests.data.made import read_file

        path = folder / "data.csv"
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(f"text,label,{name}\na film,x,y\n")
        read_file(Data(train=str(path), text=name, label="label"), str(path))

    def data_file(self, name: str, folder: Path) -> None:
        from flaxbert.config import Data
        from tests.data.made import read_file

        with contextlib.suppress(OSError, ValueError):  # names that no file can have
            (folder / name.replace("/", "-")).write_text("text,label\na,\n", encoding="utf-8")
        for path in (name, str(folder / name.replace("/", "-"))):
            read_file(Data(train=path), path)

    def model(self, name: str, folder: Path) -> None:
        from flaxbert.weights.resolve import resolve_model

        resolve_model(f"embedded-{name}")
        resolve_model(name)

    def revision(self, name: str, folder: Path) -> None:
        from flaxbert.weights.resolve import resolve_model

        resolve_model("someone/bert", name)

    def dataset(self, name: str, folder: Path) -> None:
        from flaxbert.storage.hub import fetch, is_hub_id

        if is_hub_id(name):
            fetch("dataset", name, "", ["*.csv"])

    def shard(self, name: str, folder: Path) -> None:
        from flaxbert.weights import formats

        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {name: name}}))
        formats.find(folder)[0].read(folder)

    def tensor(self, name: str, folder: Path) -> None:
        """As the name of a parameter, in the files and in what is said about them."""
        import numpy as np

        from flaxbert.shell.console import say
        from flaxbert.weights import table

        say(", ".join(table.assemble(self._config, {name: np.zeros(3)}, "made").dropped))

    def tokenizer_setting(self, name: str, folder: Path) -> None:
        """A setting that names a file: read by us, never followed."""
        from flaxbert.data.tokenizer_files import load_tokenizer, refuse_unusable

        shutil.copy(self._tokenizer / "vocab.txt", folder)
        settings = json.dumps({"vocab_file": name, name: name, f"{name}_file": name})
        (folder / "tokenizer_config.json").write_text(settings)
        refuse_unusable(folder)
        assert len(load_tokenizer(folder)) == 30522

    def output(self, name: str, folder: Path) -> None:
        """A path that a user names: written there, or refused, but inside of what was named."""
        from flaxbert.inference import answers
        from flaxbert.storage.store import store_for

        path = folder / "out" / f"{name.replace('/', '-')}.csv"
        (folder / "out").mkdir()
        answers.check_output(str(path))
        with store_for(path).replacing(path) as file:
            file.write("x")

    def results(self, name: str, folder: Path) -> None:
        """Names of result files are made of the task's and the data's own."""
        from flaxbert.run.result_names import predictions_name
        from flaxbert.storage.workdir import Workdir

        made = predictions_name(Path(name).stem, Path(name).stem, "")
        for path in (folder / made, Workdir(folder).results(Path(name).stem)):
            with contextlib.suppress(ValueError):  # a NUL: no data file has that name
                Path(path).write_text("x", encoding="utf-8")

    def finding(self, name: str, folder: Path) -> None:
        """On the doctor's page, and in its JSON."""
        from flaxbert.diagnose.findings import OK, Finding, as_json, as_lines
        from flaxbert.shell.console import say

        finding = Finding(name, OK, name, name, facts={name: name})
        for line in as_lines([finding]):
            say(line)
        json.loads(as_json([finding]))


PLACES = [name for name in vars(Places) if not name.startswith("_")]


def _command(define: Callable[[Any], None], arguments: list[str]) -> None:
    """Parses a command line as the real command does, as far as the config."""
    import sys

    from flaxbert.shell import cli

    before, sys.argv = sys.argv, ["flaxbert.train", *arguments]
    try:
        cli._parse(define)
    finally:
        sys.argv = before


def look(places: Places, place: str, name: str, folder: Path, guard: Guard) -> tuple[str, str]:
    """Puts one name into one place; returns "taken", "refused" or "failed", and why."""
    from flaxbert.errors import FlaxbertError
    from flaxbert.shell.console import printable, say
    from flaxbert.storage.hub import HubError

    folder.mkdir()
    said, outcome, why = io.StringIO(), "taken", ""
    guard.acts, guard.watching = [], True
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                getattr(places, place)(name, folder)
            except (FlaxbertError, HubError) as error:
                outcome = "refused"
                say(str(error))
            except OSError as error:  # cli.py says these, with the file
                outcome = "refused" if error.errno is not None else "failed"
                why = "" if error.errno is not None else traceback.format_exc()
            except SystemExit as stop:
                outcome = "refused" if stop.code == 0 else "failed"  # --help
                why = "" if stop.code == 0 else f"exit {stop.code}"
    except Exception:
        outcome, why = "failed", traceback.format_exc()
    finally:
        guard.watching = False
    text = said.getvalue()
    if guard.acts:
        outcome, why = "failed", f"acts: {guard.acts[:3]}"
    elif printable(text) != text:
        outcome, why = "failed", f"not printable: {text!r:.200}"
    shutil.rmtree(folder)
    return outcome, why


def run(names: int, seed: int, each: int, root: Path) -> dict[str, Any]:
    """Puts every name into `each` places; returns counts and the first failures."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    places = Places(root)
    temporary = root / "tmp"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    (root / "cwd").mkdir()
    before = Path.cwd()
    guard = Guard([root], [])
    counts: dict[str, Counter] = {place: Counter() for place in PLACES}
    failures = []
    os.chdir(root / "cwd")
    try:
        for number in range(names):
            name = make_name(seed, number)
            for place in random.Random(f"{seed}-{number}-places").sample(PLACES, each):
                outcome, why = look(places, place, name, root / f"{number}-{place}", guard)
                counts[place][outcome] += 1
                if outcome == "failed" and len(failures) < 50:
                    failures.append({"place": place, "number": number, "name": name, "why": why})
    finally:
        os.chdir(before)
        tempfile.tempdir = None
    left = sorted(path.name for path in (root / "cwd").iterdir())
    return {
        "counts": {place: dict(sorted(counter.items())) for place, counter in counts.items()},
        "failed": sum(counter["failed"] for counter in counts.values()),
        "left in the current folder": left,
        "failures": failures,
    }


def main() -> None:
    """Runs the names and writes the result file; exits 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=4, help="places that each name goes to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with scratch() as root:
        (root / "all").mkdir()
        found = run(arguments.names, arguments.seed, arguments.each, (root / "all").resolve())
    found = {
        "what": "hostile names in every place that takes one: nothing outside, nothing unprintable",
        "command": f"python -m tests.soak.names --names={arguments.names} "
        f"--each={arguments.each} --seed={arguments.seed}",
        "names": arguments.names,
        "places": len(PLACES),
        "places for each name": arguments.each,
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "python": platform.python_version(),
        "versions": versions(("huggingface-hub", "numpy", "pyarrow", "tokenizers", "transformers")),
        "machine": machine(),
        **found,
    }
    text = json.dumps(found, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    raise SystemExit(1 if found["failed"] or found["left in the current folder"] else 0)


if __name__ == "__main__":
    main()
