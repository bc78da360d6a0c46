"""The Colab notebook: valid, true to the package's flags, and it runs from top to bottom.

Note: the image is a fresh environment that sees the test environment's libraries, jax among them,
through a folder of links beside it, and not the clone's flaxbert: that comes by the notebook's own
install cell. pip takes such libraries for the system's and never removes them.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import types
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
from absl import flags

from tests.commands import ROOT, call
from tests.wheels import build_wheel

NOTEBOOK = ROOT / "notebooks" / "flaxbert_colab.ipynb"
UPDATES = 20


def _notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def _code() -> dict[str, str]:
    return {cell.id: cell.source for cell in _notebook().cells if cell.cell_type == "code"}


# What the file says.


def test_it_is_valid_clean_and_written_in_one_way():
    text, notebook = NOTEBOOK.read_text(encoding="utf-8"), _notebook()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert text == nbformat.writes(notebook) + "\n"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
        assert set(cell.metadata) <= {"tags"}, cell.id
    assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.accelerator == "TPU"


def test_cells_are_short_and_name_no_machine():
    for cell in _notebook().cells:
        assert len(cell.source.splitlines()) <= 40, cell.id
        found = re.findall(r"https?:|localhost|/(?:home|root|tmp|usr|work|opt)\b", cell.source)
        assert not found, f"{cell.id}: {found}"


def test_the_settings_are_one_tagged_cell_and_all_are_used():
    cells = _notebook().cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    assert tagged == [next(cell for cell in cells if cell.cell_type == "code")]
    settings = _assigned(tagged[0].source)
    assert settings["FLAXBERT"] == "flaxbert"
    # Nothing is uploaded, nor a short try made, unless somebody asks for it.
    names = ("MODEL", "EPOCHS", "STEPS", "PUSH_TO_HUB", "USE_DRIVE")
    assert not any(settings[name] for name in names)
    others = "\n".join(cell.source for cell in cells if cell is not tagged[0])
    read = {
        node.id for node in _nodes(_code().values(), ast.Name) if isinstance(node.ctx, ast.Load)
    }
    assert settings.keys() <= read
    for name in re.findall(r"`([A-Z_]{4,})(?: =[^`]*)?`", others):
        assert name in settings or name == "HF_TOKEN", name


def test_the_notebook_never_imports_jax():
    """It would hold the TPU, which serves one process, while the commands want it."""
    imported = {
        alias.name.split(".")[0]
        for node in _nodes(_code().values(), ast.Import)
        for alias in node.names
    } | {str(node.module).split(".")[0] for node in _nodes(_code().values(), ast.ImportFrom)}
    assert not imported & {"jax", "jaxlib", "flax", "flaxbert", "optax", "torch_xla", "tensorflow"}


def test_commands_flags_and_fields_exist():
    from flaxbert.config import Config, flatten, to_dict

    fields = set(flatten(to_dict(Config())))
    texts = {name: _texts(ast.parse(source)) for name, source in _code().items()}
    modules = {
        (name, text.split(".")[1])
        for name, found in texts.items()
        for text in found
        if text.startswith("flaxbert.")
    }
    cells = {"check": "doctor", "train": "train", "evaluate": "evaluate", "predict": "predict"}
    assert modules == set(cells.items())
    for name, command in {**cells, "data": "train"}.items():
        _check_flags(command, texts[name], fields)
    (changes,) = (
        node.value
        for node in _nodes([_code()["train"]], ast.Assign)
        if node.targets[0].id == "changes"
    )
    assert {key.value for key in changes.keys} <= fields


@pytest.mark.parametrize(
    "wrong", ["--config.train.step={x}", "--work_dir=x", "--config=configs/x.py"]
)
def test_wrong_flags_are_found(wrong):
    with pytest.raises(AssertionError):
        _check_flags("train", [wrong], {"train.steps"})


def _nodes(sources: Any, kind: type) -> Iterator[Any]:
    for source in sources:
        yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, kind))


def _assigned(source: str) -> dict[str, Any]:
    return {
        node.targets[0].id: ast.literal_eval(node.value) for node in _nodes([source], ast.Assign)
    }


def _texts(node: ast.AST) -> list[str]:
    """Every string in it; what an f-string puts in is {x}."""
    if isinstance(node, ast.JoinedStr):
        constant = ((isinstance(part, ast.Constant), part) for part in node.values)
        return ["".join(str(part.value) if known else "{x}" for known, part in constant)]
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    return [text for child in ast.iter_child_nodes(node) for text in _texts(child)]


def _check_flags(command: str, texts: list[str], fields: set[str]) -> None:
    values = flags.FlagValues()
    importlib.import_module(f"flaxbert.{command}").define_flags(values)
    for text in texts:
        if not re.match(r"--[a-z_.{]+=", text):
            continue
        name, value = text[2:].split("=", 1)
        if name == "config":
            assert (ROOT / value).is_file(), text
        elif name.startswith("config."):
            field = name.removeprefix("config.")
            assert field == "{x}" or field in fields, text
        else:
            assert name in values, f"{command}: {text}"


# What its helper does.


def _helper() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(_code()["helper"], names)
    return names


def test_a_failing_command_raises_and_its_output_is_shown(capsys):
    script = (
        "import os; print('seen', os.environ['X']); print('Grüße', file=os.sys.stderr); exit(3)"
    )
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _helper()["run"](sys.executable, "-c", script, X="y", PYTHONIOENCODING="utf-8")
    assert caught.value.returncode == 3
    out = capsys.readouterr().out
    assert "seen y\n" in out and "Grüße" in out and out.endswith(caught.value.output)


def test_the_stop_button_reaches_the_command_which_may_save(tmp_path):
    child = textwrap.dedent(
        """
        import signal, sys, time
        def save(number, frame):
            print("saved")
            sys.exit(75)
        signal.signal(signal.SIGINT, save)
        print("started")
        time.sleep(60)
        """
    )
    parent = f"{_code()['helper']}\nrun(sys.executable, '-c', {child!r})\n"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout and process.stderr
        while "started" not in process.stdout.readline().split():
            pass
        process.send_signal(signal.SIGINT)  # to it alone
        out, err = process.communicate(timeout=30)
    assert "saved" in out
    assert err.rstrip().endswith("KeyboardInterrupt")


# What its cell of data does.


def test_own_rows_are_trained_on(reviews, tiny_bert, tmp_path, monkeypatch, capsys):
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(upload=lambda: {str(reviews["train"]): b""})
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    told = []
    for chosen in ("upload", str(reviews["train"])):
        source = _code()["data"].replace('OWN_CSV = ""', f"OWN_CSV = {chosen!r}", 1)
        names: dict[str, Any] = {"Path": Path}
        exec(source, names)
        assert names["NAME"] == "train"
        told.append(names["CONFIG"])
    assert told[0] == told[1]
    small = (
        f"--config.model.path={tiny_bert}",
        "--config.train.steps=2",
        "--config.train.batch_size=16",
        "--config.data.row_length=640",  # one row: one program
        "--config.mesh.data=1",
    )
    workdir = f"--workdir={tmp_path / 'run'}"
    done = call("train", *names["CONFIG"], *small, workdir, capsys=capsys)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert results["eval_samples"] == 10  # a tenth of 96


# How it installs.


@pytest.mark.parametrize(
    ("device", "driver", "expected"),
    [
        ("cpu", "", []),
        ("tpu", "", ["jax[tpu]"]),
        ("gpu", "575.57.08\n", ["jax[cuda12]"]),
        ("gpu", "580.65.06\n580.65.06\n", ["jax[cuda13]"]),
    ],
)
def test_what_an_image_without_jax_gets(device, driver, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, commands = _helper(), []
    names |= {"Path": Path, "FLAXBERT": "flaxbert", "DEVICE": device, "BEFORE": {}}
    monkeypatch.setattr(subprocess, "check_output", lambda query, text: driver)
    exec(_code()["install"], names)
    names["run"] = lambda *command: commands.append(command)
    assert names["install_here"]("--quiet") == sys.executable
    assert commands.pop()[-1 - len(expected) :] == ("flaxbert", *expected)
    names["BEFORE"] = {"jax": "0.10.2", "numpy": "2.0.2"}
    names["install_here"]("--quiet")
    assert Path("flaxbert-constraints.txt").read_text() == "jax==0.10.2\nnumpy==2.0.2\n"
    assert commands.pop()[-3:] == ("-c", "flaxbert-constraints.txt", "flaxbert")
    monkeypatch.setenv("PYTHONPATH", "/of/the/image")
    own = Path(names["install_beside"]("own"))
    assert commands.pop()[3:] == (
        *("--python", str(own), "install", "--quiet", "pip", "flaxbert"),
        *expected,
    )
    assert "PYTHONPATH" not in os.environ
    prefixes = "import sys; print(sys.prefix != sys.base_prefix, sys.prefix)"
    done = subprocess.run([own, "-c", prefixes], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(tmp_path / "own")]


@dataclasses.dataclass(frozen=True)
class Image:
    """An environment with libraries, as Colab's, and without flaxbert."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "environment" / "bin" / "python"

    @property
    def own(self) -> Path:
        (found,) = (self.folder / "environment").glob("lib/python*/site-packages")
        return found

    def variables(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "PIP_NO_INDEX": "1",  # all that flaxbert needs is there
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "IPYTHONDIR": str(self.folder / "ipython"),
        }

    def ask(self, code: str) -> str:
        done = subprocess.run(
            [self.python, "-c", code], env=self.variables(), capture_output=True, text=True,
            cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


def _make_image(folder: Path) -> Image:
    venv.create(folder / "environment", symlinks=True)
    libraries = folder / "libraries"
    libraries.mkdir()
    for path in {sysconfig.get_path(name) for name in ("purelib", "platlib")}:
        for entry in Path(path).iterdir():
            if "flaxbert" not in entry.name and entry.suffix != ".pth":
                (libraries / entry.name).symlink_to(entry)
    image = Image(folder)
    (image.own / "libraries.pth").write_text(f"{libraries}\n")
    return image


def _execute(image: Image, folder: Path, **settings: object) -> dict[str, Any]:
    """Runs the notebook from top to bottom; returns its executed code cells by id."""
    command = [str(image.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = image.folder / "kernels" / "image" / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(json.dumps({"argv": command, "display_name": "", "language": "python"}))
    notebook = _notebook()
    place = next(i for i, cell in enumerate(notebook.cells) if "tags" in cell.metadata)
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines), id="injected"))
    asked, executed = image.folder / "asked.ipynb", folder / "executed.ipynb"
    nbformat.write(notebook, asked)
    arguments = map(str, (spec.parents[1], asked, executed))
    done = subprocess.run(
        [sys.executable, "-m", "tests.notebooks.execute", *arguments],
        env=image.variables(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(executed, as_version=nbformat.NO_CONVERT).cells
    return {cell.id: cell for cell in cells if cell.cell_type == "code"}


def _printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@pytest.mark.next_line  # Colab's Python
@pytest.mark.timeout(900)
def test_it_runs_from_top_to_bottom_and_a_second_time_at_once(wheel, minilm, tmp_path):
    image = _make_image(tmp_path / "image")
    versions = "from importlib.metadata import version as v; print(v('jax'), v('jaxlib'))"
    before = image.ask(versions)
    folder = tmp_path / "user"
    folder.mkdir()
    settings = {"FLAXBERT": str(wheel), "STEPS": UPDATES}
    cells = _execute(image, folder, **settings)

    # The image's jax is the one from before, and flaxbert is all that came.
    assert image.ask(versions) == before
    assert before.split() == [metadata.version("jax"), metadata.version("jaxlib")]
    came = {entry.name.split("-")[0] for entry in image.own.iterdir()}
    assert came == {"flaxbert", "libraries.pth"}
    place = image.ask("import flaxbert; print(flaxbert.__file__)")
    assert Path(place.strip()).is_relative_to(image.own)
    assert "every package is in the range" in _printed(cells["check"])

    assert f"update {UPDATES}/{UPDATES}" in _printed(cells["train"])
    pictures = [o.data["image/png"] for o in cells["watch"].outputs if "data" in o]
    assert len(pictures) == 1 and len(pictures[0]) > 10_000
    assert "(macro)" in _printed(cells["evaluate"])
    answers = [line for line in _printed(cells["answers"]).splitlines() if line.startswith("  ")]
    assert len(answers) == 3
    for line in answers:
        answer = json.loads(line)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)

    from flaxbert import FlaxBertForSequenceClassification

    model = FlaxBertForSequenceClassification.from_pretrained(folder / "runs/quickstart/model")
    assert tuple(model.config.id2label) == ("negative", "positive")
    with_torch = "The logits of PyTorch and flaxbert differ by"
    expected = with_torch if _has_torch() else "Skipped, the check needs PyTorch"
    assert expected in _printed(cells["torch"])
    archive = folder / "quickstart-model.zip"
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "model.safetensors").is_file()
    assert _printed(cells["push"]).startswith("Not uploaded")

    again = _execute(image, folder, **settings)
    assert "this run is finished" in _printed(again["train"])
    assert _printed(again["answers"]) == _printed(cells["answers"])


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _until_installed(image: Image, folder: Path, inject: str) -> subprocess.CompletedProcess[str]:
    """Runs the cells up to the one that installs, without a kernel."""
    code = _code()
    before = [code[name] for name in ("settings", "helper", "image", "install")]
    script = "\n".join([*before, inject, code["install-run"], "print('PYTHON', PYTHON)"])
    return subprocess.run(
        [image.python, "-c", script], env=image.variables(), cwd=folder, capture_output=True,
        text=True,
    )  # fmt: skip


def test_an_image_that_does_not_fit_is_left_alone(wheel, tmp_path):
    """Three starts of pip itself: it is the one who says what fits."""
    package = "jax"
    image = _make_image(tmp_path / "image")
    old = image.own / f"{package}-0.7.2.dist-info"
    old.mkdir()
    text = f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.7.2\n"
    (old / "METADATA").write_text(text)
    stub = "def install_beside(folder): print('BESIDE', folder); return 'own'"
    chosen = f"FLAXBERT = {str(wheel)!r}\n{stub}\n"

    done = _until_installed(image, tmp_path, chosen)
    assert done.returncode == 0, done.stderr
    assert f"The user requested (constraint) {package}==0.7.2" in done.stdout  # pip's own reason
    assert "does not fit what the image has" in done.stdout
    assert done.stdout.endswith("BESIDE flaxbert-environment\nPYTHON own\n")

    done = _until_installed(image, tmp_path, chosen + 'OWN_ENVIRONMENT = "never"')
    assert done.returncode != 0 and "BESIDE" not in done.stdout
    assert 'Set OWN_ENVIRONMENT = "auto"' in done.stderr.splitlines()[-1]
    assert not (image.own / "flaxbert").exists()

    # Something else than versions is no reason to install anything elsewhere.
    done = _until_installed(image, tmp_path, f"FLAXBERT = 'no_such.whl'\n{stub}\n")
    assert done.returncode != 0 and "BESIDE" not in done.stdout


def test_another_jax_is_noticed(wheel, tmp_path):
    image = _make_image(tmp_path / "image")
    code = _code()
    other = image.own / "jax-0.1.0.dist-info"
    change = (
        f"Path({str(other)!r}).mkdir()\n"
        f"Path({str(other)!r}, 'METADATA').write_text('Name: jax\\nVersion: 0.1.0\\n')\n"
        "PYTHON = sys.executable\n"
    )
    script = "\n".join([code["settings"], code["helper"], code["image"], change, code["check"]])
    done = subprocess.run(
        [image.python, "-c", script], env=image.variables(), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "now there is {'jax': '0.1.0'}" in done.stderr.splitlines()[-1]
