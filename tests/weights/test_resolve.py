"""Where a model comes from, and what is said when it cannot be had. Never past this machine."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from flaxbert.errors import ConfigError, InterruptedRun, ModelFileError
from flaxbert.weights import resolve
from flaxbert.weights.resolve import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _refused(name) -> str:
    with pytest.raises(ModelFileError) as caught:
        resolve_model(name)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_hub(monkeypatch):
    def called(*_, **__):
        pytest.fail("the hub was asked")  # no Exception, so that nothing can turn it into another

    monkeypatch.setattr(huggingface_hub, "snapshot_download", called)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """No network, and nothing in the hub's cache on this machine."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _cached(cache: Path) -> Path:
    """Lays a model into the hub's cache as a download would."""
    repo = cache / "models--someone--bert"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    return snapshot


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_itself(tmp_path, no_hub, kind):
    assert resolve_model(kind(tmp_path)) == (tmp_path, "")


def test_a_folder_wins_over_a_hub_id(tmp_path, no_hub, monkeypatch):
    (tmp_path / "someone" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("someone/bert") == (Path("someone/bert"), "")


def test_the_embedded_checkpoint(minilm, no_hub):
    folder, revision = resolve_model("embedded:minilm")
    assert (folder, revision) == (minilm, "embedded:minilm")
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "../nowhere", "/nowhere/at/all", "~/model", "a/b/c", "runs/x/", "", "embedded:x"],
)
def test_what_can_only_be_a_path_never_reaches_the_hub(no_hub, name):
    message = _refused(name)
    assert repr(name) in message
    assert "there is no such folder" in message and "embedded:minilm" in message


@pytest.mark.parametrize("name", ["bert-base-uncased", "someone/bert"])
def test_a_hub_id_that_is_not_cached(empty_cache, name):
    message = _refused(name)
    assert repr(name) in message
    assert "local folder" in message and "quickstart" in message and "network" in message


@pytest.mark.parametrize("name", ["not a name", "x" * 3000, "a\nb"])
def test_a_name_that_no_hub_id_can_have(no_hub, name):
    assert "there is no such folder" in _refused(name)


def test_a_cached_model_needs_no_network(empty_cache):
    snapshot = _cached(empty_cache)
    assert resolve_model("someone/bert") == (snapshot, COMMIT)
    assert resolve_model("someone/bert", COMMIT) == (snapshot, COMMIT)


def test_another_revision_than_the_cached_one(empty_cache):
    _cached(empty_cache)
    with pytest.raises(ModelFileError):
        resolve_model("someone/bert", "v2")


def test_a_connection_that_breaks_is_a_model_error(monkeypatch):
    class ReadError(Exception):  # HTTP libraries have errors that are no OSError
        pass

    def download(*_, **__):
        raise ReadError("connection reset\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "connection reset" in _refused("someone/bert")


def test_a_signal_during_a_download_stays_an_interruption(monkeypatch):
    def download(*_, **__):
        raise InterruptedRun("stopped")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InterruptedRun):
        resolve.resolve_model("someone/bert")


def test_a_revision_of_a_folder_is_refused(tmp_path):
    for name in (str(tmp_path), "embedded:minilm"):
        with pytest.raises(ConfigError, match="is for hub ids"):
            resolve_model(name, "main")


@pytest.mark.parametrize(
    "revision", ["../../x", "a/../b", "/etc", "-x", "a\x00b", "a\nb", "x" * 300, "a//b", ".git"]
)
def test_a_revision_that_would_lead_out_of_the_cache(no_hub, revision):
    with pytest.raises(ModelFileError, match="is no revision"):
        resolve_model("some/model", revision)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/12", "feature/a_b-c", "0" * 40])
def test_a_revision_as_git_allows_them_is_asked_for(empty_cache, revision):
    with pytest.raises(ModelFileError) as caught:
        resolve_model("some/model", revision)
    assert "is no revision" not in str(caught.value)
