"""Links in folders of others: followed inside the folder and in the hub's cache, nowhere else."""

from __future__ import annotations

import os
import subprocess

import pytest

from flaxbert.errors import ConfigError, ModelFileError
from flaxbert.storage.plain import refuse_links, refuse_outside


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "elsewhere" / "secret"
    path.parent.mkdir()
    path.write_text("secret")
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    (path / "source").mkdir(parents=True)
    (path / "vocab.txt").touch()
    return path


@pytest.mark.parametrize("name", ["config.json.tmp", "source/vocab.txt", "model", ".lock"])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "pipe"])
def test_a_workdir_has_plain_entries_only(folder, secret, name, kind):
    refuse_links(folder)
    targets = {"file": secret, "folder": secret.parent, "nothing": secret.parent / "no"}
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(targets[kind])
    with pytest.raises(ConfigError, match="Nothing in a workdir may lead out of it") as caught:
        refuse_links(folder)
    assert str(folder / name) in str(caught.value)


def test_the_workdir_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    refuse_links(tmp_path / "link")


@pytest.mark.parametrize("target", ["../elsewhere/secret", "/etc/hostname", "../elsewhere/none"])
def test_a_link_out_of_a_model_folder_is_refused(folder, secret, target):
    (folder / "tokenizer_config.json").symlink_to(target)
    with pytest.raises(ModelFileError, match=r"tokenizer_config.json is a link to .*, outside"):
        refuse_outside(folder)


def test_links_within_a_model_folder_and_to_unread_folders_are_followed(folder, secret):
    (folder / "other.txt").symlink_to("vocab.txt")
    (folder / "data").symlink_to(secret.parent)
    refuse_outside(folder, ("params",))
    (folder / "params").symlink_to(secret.parent)
    with pytest.raises(ModelFileError, match="params is a link"):
        refuse_outside(folder, ("params",))


@pytest.fixture
def repository(tmp_path):
    """A model in the hub's cache: a file, and one in a folder of it."""
    path = tmp_path / "models--a--b"
    (path / "snapshots" / "0123" / "onnx" / "deep").mkdir(parents=True)
    (path / "blobs").mkdir()
    (path / "blobs" / "abc").write_text("x")
    (path / "snapshots" / "0123" / "vocab.txt").symlink_to("../../blobs/abc")
    (path / "snapshots" / "0123" / "onnx" / "vocab.txt").symlink_to("../../../blobs/abc")
    (path / "snapshots" / "0123" / "onnx" / "deep" / "v").symlink_to("../../../../blobs/abc")
    return path


@pytest.mark.parametrize("inner", [".", "onnx", "onnx/deep"])
def test_the_hub_s_cache_is_followed_to_its_blobs_alone(repository, inner, secret):
    folder = repository / "snapshots" / "0123" / inner
    refuse_outside(folder)
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(ModelFileError, match=r"config.json is a link .* Put a copy of the file"):
        refuse_outside(folder)


def test_other_folders_named_snapshots_are_no_hub_s_cache(tmp_path, secret):
    """Of a file system's own snapshots, say, with blobs/ of somebody else beside them."""
    folder = tmp_path / "snapshots" / "monday" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "private").touch()
    (folder / "vocab.txt").symlink_to("../../../blobs/private")
    with pytest.raises(ModelFileError, match=r"vocab.txt is a link"):
        refuse_outside(folder)


def test_how_to_copy_a_folder_of_an_older_hub_client(repository, tmp_path):
    old = tmp_path / "my model"  # --local-dir, with links into the cache
    old.mkdir()
    (old / "vocab.txt").symlink_to(repository / "blobs" / "abc")
    with pytest.raises(ModelFileError, match="Older versions of huggingface_hub") as caught:
        refuse_outside(old)
    command = str(caught.value).split("`")[1]
    assert command == f"cp -rL '{old}' 'my model-copy'"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    refuse_outside(tmp_path / "my model-copy")
    assert (tmp_path / "my model-copy" / "vocab.txt").read_text() == "x"


def test_blobs_that_are_a_link_themselves_lead_nowhere(tmp_path, secret):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").symlink_to(secret.parent)
    (snapshot / "vocab.txt").symlink_to("../../blobs/secret")
    with pytest.raises(ModelFileError, match=r"vocab.txt is a link"):
        refuse_outside(snapshot)


def test_a_link_to_itself_is_refused(folder):
    (folder / "config.json").symlink_to("config.json")
    refuse_outside(folder)  # inside, and no file: whoever reads it says that it is missing
    with pytest.raises(ConfigError):
        refuse_links(folder)
