"""The manifest finds every change: flipped bits, cuts, swaps, links, edited manifests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.storage.manifest import FORMAT, NAME, DamagedError, verify_manifest, write_manifest


@pytest.fixture
def directory(tmp_path):
    """A small tree with nested, empty and equal-sized files, and its manifest."""
    root = tmp_path / "7"
    (root / "state" / "d").mkdir(parents=True)
    (root / "run.json").write_text("{}")
    (root / "state" / "a").write_bytes(b"aaaa")
    (root / "state" / "b").write_bytes(b"bbbb")
    (root / "state" / "d" / "data").write_bytes(bytes(range(256)))
    (root / "state" / "d" / "empty").touch()
    write_manifest(root)
    return root


def _flip(root, name="state/d/data", bit=3):
    data = bytearray((root / name).read_bytes())
    data[-1] ^= 1 << bit
    (root / name).write_bytes(data)


def _truncate(root):
    os.truncate(root / "state" / "d" / "data", 255)


def _append(root):
    with (root / "state" / "d" / "data").open("ab") as file:
        file.write(b"x")


def _swap(root):
    a, b = root / "state" / "a", root / "state" / "b"
    a.rename(root / "c")
    b.rename(a)
    (root / "c").rename(b)


def _move(root):
    (root / "state" / "a").rename(root / "a")


def _link(root, content=None):
    outside = root.parent / "outside"
    shutil.move(root / "state" / "a", outside)
    (root / "state" / "a").symlink_to(outside)
    if content is not None:
        outside.write_bytes(content)


def _link_directory(root):
    outside = root.parent / "outside"
    shutil.move(root / "state" / "d", outside)
    (root / "state" / "d").symlink_to(outside)


def _directory_for_file(root):
    (root / "state" / "a").unlink()
    (root / "state" / "a").mkdir()


def _edit(change, digest=False):
    def edit(root):
        body = json.loads((root / NAME).read_text())
        change(body)
        if digest:
            body.pop("digest", None)
            text = json.dumps(body, sort_keys=True)
            body["digest"] = hashlib.sha256(text.encode()).hexdigest()
        (root / NAME).write_text(json.dumps(body))

    return edit


def _forget_file(root):
    """A file vanishes, and its line with it."""
    (root / "state" / "a").unlink()
    _edit(lambda body: body["files"].pop("state/a"))(root)


DAMAGES = {
    "a flipped bit": (_flip, "state/d/data has other content"),
    "a flipped bit of run.json": (lambda root: _flip(root, "run.json"), "run.json has other"),
    "truncated": (_truncate, "state/d/data has 255 bytes, expected 256"),
    "longer": (_append, "state/d/data has 257 bytes, expected 256"),
    "emptied": (lambda root: (root / "state" / "a").write_bytes(b""), "state/a has 0 bytes"),
    "deleted": (lambda root: (root / "state" / "a").unlink(), "state/a is missing"),
    "an empty file deleted": (
        lambda root: (root / "state" / "d" / "empty").unlink(),
        "state/d/empty is missing",
    ),
    "a directory deleted": (lambda root: shutil.rmtree(root / "state"), "state/a is missing"),
    "an extra file": (lambda root: (root / "state" / "x").touch(), "state/x is not in the"),
    "an extra hidden file": (lambda root: (root / ".x").touch(), ".x is not in the manifest"),
    "two files swapped": (_swap, "state/a has other content"),
    "moved": (_move, "a is not in the manifest"),
    "a link to something else": (lambda root: _link(root, b""), "state/a has 0 bytes"),
    "a link to a device": (lambda root: (root / "x").symlink_to("/dev/zero"), "x is neither"),
    "a link to a directory": (_link_directory, "d is neither a plain file nor a directory"),
    "a dangling link": (lambda root: (root / "x").symlink_to("nowhere"), "x is neither"),
    "a pipe": (lambda root: os.mkfifo(root / "x"), "x is neither"),
    "a directory for a file": (_directory_for_file, "state/a is missing"),
    "no manifest": (lambda root: (root / NAME).unlink(), f"{NAME} is missing"),
    "manifest truncated": (lambda root: os.truncate(root / NAME, 100), "not readable"),
    "manifest empty": (lambda root: os.truncate(root / NAME, 0), "not readable"),
    "manifest is a list": (lambda root: (root / NAME).write_text("[]"), "not readable"),
    "manifest is null": (lambda root: (root / NAME).write_text("null"), "not readable"),
    "manifest is binary": (lambda root: (root / NAME).write_bytes(b"\xff\x00"), "not readable"),
    "another size": (
        _edit(lambda body: body["files"]["state/a"].update(size=5)),
        "does not match its own digest",
    ),
    "a line removed": (_forget_file, "does not match its own digest"),
    "another format, unsigned": (
        _edit(lambda body: body.update(format=2)),
        "does not match its own digest",
    ),
    "no digest": (_edit(lambda body: body.pop("digest")), "not readable"),
    "a digest that is no text": (_edit(lambda body: body.update(digest=1)), "its own digest"),
    "no files": (_edit(lambda body: body.pop("files")), "not readable"),
    "files as a list": (_edit(lambda b: b.update(files=["a"]), digest=True), "not readable"),
    "a line without a size": (
        _edit(lambda body: body["files"]["state/a"].pop("size"), digest=True),
        "not readable",
    ),
    "a line that is a number": (
        _edit(lambda body: body["files"].update({"state/a": 4}), digest=True),
        "not readable",
    ),
    "a later format": (
        _edit(lambda body: body.update(format=FORMAT + 1), digest=True),
        f"has format {FORMAT + 1}, this version reads {FORMAT}",
    ),
}


def test_an_untouched_directory_verifies(directory):
    for _ in range(2):
        verify_manifest(directory)


def test_a_copy_verifies(directory, tmp_path):
    verify_manifest(Path(shutil.copytree(directory, tmp_path / "copy")))


def test_writing_it_again_gives_the_same_manifest(directory):
    before = (directory / NAME).read_bytes()
    write_manifest(directory)
    assert (directory / NAME).read_bytes() == before


def test_the_manifest_lists_every_file_with_its_sha256(directory):
    files = json.loads((directory / NAME).read_text())["files"]
    assert files.keys() == {"run.json", "state/a", "state/b", "state/d/data", "state/d/empty"}
    for name, entry in files.items():
        data = (directory / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_named(directory, kind):
    damage, said = DAMAGES[kind]
    damage(directory)
    with pytest.raises(DamagedError) as caught:
        verify_manifest(directory)
    assert said in str(caught.value)


def test_files_may_be_links_to_the_same_content(directory):
    _link(directory)
    verify_manifest(directory)


def test_files_are_synced_before_the_manifest_names_them(directory, monkeypatch):
    synced = []
    fsync = os.fsync

    def recorded(handle):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    write_manifest(directory)
    last = synced.index(f"{NAME}.tmp")
    assert {"a", "b", "data", "empty", "run.json", directory.name} <= set(synced[:last])


def test_no_random_corruption_of_a_real_checkpoint_goes_unseen(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, {"a": jnp.arange(300.0), "b": {"c": jnp.ones((7, 5))}}, {"best": 1.5})
    checkpoints.close()
    root = tmp_path / "3"
    verify_manifest(root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    random = np.random.default_rng(0)
    kinds = ("bit", "bytes", "cut", "append", "delete", "extra")
    seen = set()
    for trial in range(200):
        path = files[random.integers(len(files))]
        whole = path.read_bytes()
        kind = kinds[trial % len(kinds)] if whole else "append"
        data = bytearray(whole)
        place = int(random.integers(len(data))) if data else 0
        extra = path.with_name(path.name + "x")
        if kind == "bit":
            data[place] ^= 1 << int(random.integers(8))
        elif kind == "bytes":
            data[place] = (data[place] + int(random.integers(1, 256))) % 256
        elif kind == "cut":
            del data[place:]
        elif kind == "append":
            data += random.bytes(int(random.integers(1, 9)))
        if kind == "delete":
            path.unlink()
        elif kind == "extra":
            extra.write_bytes(whole)
        else:
            path.write_bytes(data)
        if path.name == NAME and _same_json(path, whole):
            path.write_bytes(whole)
            continue  # another spelling of the same manifest: white space or the case of an escape
        with pytest.raises(DamagedError):
            verify_manifest(root)
        seen.add((kind, path.name == NAME))
        extra.unlink(missing_ok=True)
        path.write_bytes(whole)
    verify_manifest(root)  # every trial was undone
    assert {kind for kind, _ in seen} == set(kinds)
    assert any(of_manifest for _, of_manifest in seen)


def _same_json(path: Path, before: bytes) -> bool:
    try:
        return path.exists() and json.loads(path.read_bytes()) == json.loads(before)
    except ValueError:
        return False
