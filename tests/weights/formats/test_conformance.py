"""What every weight format promises, over all files of flaxbert/weights/formats.

A format that can be written is tried on folders that it writes, one that is only read on the golden
folders that it holds. What is special to a format stands in a test file of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.weights import formats, table
from flaxbert.weights.folder import read_weights
from flaxbert.weights.formats import Tensors, WeightFormat
from tests import folders
from tests.folders import CONFIG, assert_same_bits
from tests.golden.values import golden

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "formats"
REFUSED = {"tf1-v1", "tf2"}  # whose own tests say why
FORMATS = {form.name: form for form in formats.members()}
WRITERS = [form.name for form in formats.writers().values()]


def _read(folder: Path) -> Tensors:
    form, _ = formats.find(folder)
    return form.read(folder)


def _refused(folder: Path) -> str:
    """Returns what is said about a folder that cannot be read: one line that names it."""
    with pytest.raises(ModelFileError) as caught:
        _read(folder)
    return _checked(caught.value, folder)


def _checked(error: ModelFileError, folder: Path) -> str:
    said = str(error)
    assert error.exit_code == 4 and said.startswith(str(folder)), said
    assert "\n" not in said and len(said) < 800, said
    return said


def _named(form: WeightFormat, tensors: Tensors) -> Tensors:
    """Returns PyTorch's tensors as the format names them and lays them out."""
    if not form.flax_names:
        return tensors
    return table.flatten(table.assemble(CONFIG, tensors, "test").params)


# --- folders to try ---


def _golden_of(form: WeightFormat) -> list[Path]:
    found = [path for path in GOLDEN.iterdir() if path.name not in REFUSED and form.holds(path)]
    return sorted(found, key=lambda path: (sum(f.stat().st_size for f in path.iterdir()), path))


def _copy(source: Path, folder: Path) -> None:
    """Copies the weights alone."""
    for path in source.iterdir():
        if not path.name.endswith("config.json"):
            shutil.copy(path, folder)


def _write_one(form: WeightFormat, folder: Path) -> None:
    if form.store:
        form.write(folder, _named(form, folders.hard_tensors()))
    else:
        index = form.files[0][0]
        _copy(next(path for path in _golden_of(form) if any(path.glob(index))), folder)


def _index_of(form: WeightFormat) -> str:
    """Returns the name of the index of shards, "" for a format that has none."""
    return next((first for first, *_ in form.files if first.endswith(".index.json")), "")


def _write_shards(form: WeightFormat, folder: Path) -> None:
    index, whole = _index_of(form), form.files[0][0]
    saved = next((path for path in _golden_of(form) if (path / index).is_file()), None)
    if saved:
        return _copy(saved, folder)
    tensors = _named(form, folders.hard_tensors())
    weight_map = {}
    stem, _, suffix = whole.partition(".")
    for number in range(3):
        part = {name: tensors[name] for name in sorted(tensors)[number::3]}
        form.write(folder, part)
        shard = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
        (folder / whole).rename(folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))


KINDS: dict[str, Callable[[WeightFormat, Path], None]] = {
    "one": _write_one,
    "shards": _write_shards,
}
SHARDED = [name for name, form in FORMATS.items() if _index_of(form)]
CASES = [(name, "one") for name in FORMATS] + [(name, "shards") for name in SHARDED]
each = pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda part: part.replace(" ", ""))


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def sample(name: str, kind: str) -> Path:
        if (name, kind) not in made:
            made[name, kind] = tmp_path_factory.mktemp("model")
            KINDS[kind](FORMATS[name], made[name, kind])
        return made[name, kind]

    return sample


@pytest.fixture
def copied(samples, tmp_path) -> Callable[[str, str], Path]:
    return lambda name, kind: shutil.copytree(samples(name, kind), tmp_path / "model")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- the registry ---


def test_every_file_of_the_folder_is_a_format_and_the_documentation_has_it():
    package = ROOT / "flaxbert" / "weights" / "formats"
    assert len(FORMATS) == len(list(package.glob("*.py"))) - 1
    assert len({form.rank for form in FORMATS.values()}) == len(FORMATS)
    read, written = (ROOT / "docs" / "formats.md").read_text().split("## Written")
    for form in FORMATS.values():
        assert bool(form.store) == bool(form.option)
        assert f"| {form.name} | " in read
        assert not form.store or f"| `{form.option}` " in written


TOY = """
from flaxbert.weights.formats import WeightFormat
FORMAT = WeightFormat(
    name="Toy", option="toy", rank=5, files=(("toy.npz",),),
    load=lambda folder: {"a": 1}, store=lambda folder, tensors: None,
)
"""


def test_a_new_format_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "toy.py").write_text(TOY)
    (tmp_path / "toy.npz").touch()
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "extra")])
    formats.members.cache_clear()
    try:
        assert _read(tmp_path) == {"a": 1}
        assert list(formats.writers()) == ["toy", "pytorch", "flax", "orbax"]
        assert formats.hub_patterns()[0] == ("toy.npz",)
    finally:
        formats.members.cache_clear()


# --- what is read and written ---


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_comes_back_with_the_same_bits(name, samples):
    expected = _named(FORMATS[name], folders.hard_tensors())
    assert_same_bits(FORMATS[name].read(samples(name, "one")), expected)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_files_of_the_format_s_own_library_hold_what_was_put_into_them(name):
    if name in REFUSED:
        with pytest.raises(ModelFileError):
            _read(GOLDEN / name)
        return
    form, notes = formats.find(GOLDEN / name)
    tensors = form.read(GOLDEN / name)
    tensors = table.from_flax(tensors, "golden") if form.flax_names else tensors
    assert len(tensors) >= 39 and not notes  # an encoder of two layers
    for found, array in tensors.items():
        canonical = table.canonical_name(found)
        assert canonical is not None
        expected = golden(canonical, array.shape).astype(array.dtype)
        np.testing.assert_array_equal(array, expected, err_msg=found, strict=True)


@pytest.mark.parametrize("name", SHARDED)
def test_shards_are_put_together(name, samples):
    folder = samples(name, "shards")
    assert len(_files(folder)) == 4
    weight_map = json.loads((folder / _index_of(FORMATS[name])).read_text())["weight_map"]
    assert FORMATS[name].read(folder).keys() == weight_map.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_other_types_and_shapes_are_refused_by_name(name, tmp_path):
    form = FORMATS[name]
    tensors = _named(form, folders.random_tensors())
    bias, word = (next(n for n in tensors if part in n) for part in ("pooler", "word_embeddings"))
    tensors[bias] = np.zeros(8, np.int32)
    tensors[word] = tensors[word].T.copy()
    form.write(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    with pytest.raises(ModelFileError) as caught:
        read_weights(tmp_path, CONFIG, ())
    assert "dtype int32, expected floating point" in str(caught.value)
    assert "word_embeddings.weight has shape (8, 50), expected (50, 8)" in str(caught.value)


# --- damage ---

CUTS = (0, 1, 7, 8, 9, 30, 47, 48, 100, 511, 512, 513)


@each
def test_a_file_that_is_cut_off_is_refused(name, kind, copied):
    folder = copied(name, kind)
    for path in _files(folder):
        whole = path.read_bytes()
        size = len(whole.rstrip(b"\n")) if path.suffix == ".json" else len(whole)
        for length in {*CUTS, size // 4, size // 2, size * 3 // 4, size - 1}:
            if length < size:
                path.write_bytes(whole[:length])
                _refused(folder)
        path.write_bytes(whole)
    _read(folder)


def _sorted_bytes(array: np.ndarray) -> bytes:
    return np.sort(np.frombuffer(array.tobytes(), np.uint8)).tobytes()


@pytest.mark.parametrize("turns", [60, pytest.param(500, marks=pytest.mark.slow)])
@each
def test_a_flipped_bit_is_refused_or_changes_one_array(name, kind, turns, copied):
    """Where there is no checksum: a value, a name or a place, but never more than it says."""
    folder = copied(name, kind)
    expected = [_sorted_bytes(array) for array in _read(folder).values()]
    whole = {path: path.read_bytes() for path in _files(folder)}
    source = random.Random(0)
    for turn in range(turns):
        path = source.choice(list(whole))
        data = bytearray(whole[path])
        # Every other one where the file says what it holds.
        end = min(len(data), 600) if turn % 2 else len(data)
        data[source.randrange(end)] ^= 1 << source.randrange(8)
        path.write_bytes(data)
        try:
            read = _read(folder)
        except ModelFileError as error:
            _checked(error, folder)
        else:
            left = list(expected)
            for array in map(_sorted_bytes, read.values()):
                if array in left:
                    left.remove(array)
            assert len(left) <= 1 and len(read) <= len(expected)
        path.write_bytes(whole[path])


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_not_believed(name, copied):
    """Large numbers anywhere in what a file says of itself take no memory."""
    folder = copied(name, "one")
    held = sum(path.stat().st_size for path in _files(folder))
    path = next(folder.glob(FORMATS[name].files[0][0]))
    whole = path.read_bytes()
    places = [*range(0, min(len(whole), 400) - 8, 20), *range(len(whole) - 60, len(whole) - 8, 9)]
    _read(folder)  # imports
    tracemalloc.start()
    try:
        for place in places:
            for number in (b"\xff" * 8, b"\xff\xff\xff\x7f", b"9" * 8):
                path.write_bytes(whole[:place] + number + whole[place + len(number) :])
                try:
                    _read(folder)
                except ModelFileError as error:
                    _checked(error, folder)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20 + 40 * held
    finally:
        tracemalloc.stop()


OPTIONAL = {"manifest.json"}  # an Orbax folder of another program has none
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 440473133\n"
INSTEAD: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a git-lfs pointer": lambda path: path.write_bytes(POINTER),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("instead", INSTEAD)
@each
def test_what_is_no_file_of_the_folder_is_refused(name, kind, instead, copied):
    folder = copied(name, kind)
    for path in _files(folder):
        if path.name in OPTIONAL:
            continue
        path.rename(folder.parent / "elsewhere")
        INSTEAD[instead](path)
        said = _refused(folder)
        if instead == "a git-lfs pointer" and path.parent == folder and path.suffix != ".json":
            assert "git lfs pull" in said
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        (folder.parent / "elsewhere").rename(path)
    for number, path in enumerate(_files(folder)):  # links to another disk are followed
        path.rename(folder.parent / f"elsewhere {number}")
        path.symlink_to(folder.parent / f"elsewhere {number}")
    _read(folder)


@each
def test_links_of_the_hub_s_cache_are_followed(name, kind, samples, tmp_path):
    if not FORMATS[name].on_hub:
        assert not any("params" in pattern for row in formats.hub_patterns() for pattern in row)
        return
    model = tmp_path / "models--someone--bert"
    snapshot, blobs = model / "snapshots" / ("0" * 40), model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    found = next(
        patterns
        for patterns in formats.hub_patterns()
        if any(samples(name, kind).glob(patterns[0]))
    )
    for path in {path for pattern in found for path in samples(name, kind).glob(pattern)}:
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    read, expected = _read(snapshot), _read(samples(name, kind))
    assert read.keys() == expected.keys()
    assert all(read[key].tobytes() == expected[key].tobytes() for key in expected)


# --- shards ---


def _change(index: Path, change: Callable[[dict], object]) -> None:
    body = json.loads(index.read_text())
    change(body["weight_map"])
    index.write_text(json.dumps(body))


@pytest.mark.parametrize("name", SHARDED)
def test_an_index_names_its_neighbours_and_what_they_hold(name, copied):
    folder = copied(name, "shards")
    index = folder / _index_of(FORMATS[name])
    whole, expected = index.read_text(), _read(folder)
    first = next(iter(json.loads(whole)["weight_map"].values()))
    shutil.copy(folder / first, folder / "not-named-by-the-index")
    assert _read(folder).keys() == expected.keys()
    shutil.copy(folder / first, folder.parent)
    (folder / "sub").mkdir()
    shutil.copy(folder / first, folder / "sub")
    # All of them are there, so that only the refusal can stop the read.
    paths = (f"../{first}", str(folder.parent / first), f"sub/{first}", "..", "", ".")
    for shard in (*paths, "a\0b", "x\x1b[31m", "absent", "sub", 7, None, ["x"]):
        _change(index, lambda names, shard=shard: names.update(dict.fromkeys(names, shard)))
        _refused(folder)
        index.write_text(whole)
    _change(index, lambda names: names.update({"absent.weight": first}))
    assert "absent.weight" in _refused(folder)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": ["a"]}', "{", "", "null", "[" * 10**5]
)
@pytest.mark.parametrize("name", SHARDED)
def test_an_index_that_is_none(name, text, tmp_path):
    index = tmp_path / _index_of(FORMATS[name])
    index.write_text(text)
    assert index.name in _refused(tmp_path)
