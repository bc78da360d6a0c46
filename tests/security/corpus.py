"""Hostile models and workdirs, made by code: name -> what writes it, and the exit codes it may end
with.

The files of single formats come from the makers beside their readers' tests; here they get a folder
around them, and what only a whole folder or run can do is added.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import folders
from tests.weights import test_pickle_reader
from tests.weights.formats import (
    test_flax_msgpack,
    test_pytorch_bin,
    test_safetensors_file,
    test_tf1,
)

SECRET = b"the canary's secret 5f1c0e"
MODEL_ERROR = (4,)

# (folder to write, folder outside with the file `secret`)
Write = Callable[[Path, Path], object]


def _weights(name: str, data: bytes) -> Write:
    def write(folder: Path, outside: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(folders.CONFIG.to_dict()))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return write


def _good(change: Callable[[Path, Path], object]) -> Write:
    """A good model folder, then changed."""

    def write(folder: Path, outside: Path) -> None:
        folders.write_folder(folder, folders.random_tensors())
        change(folder, outside)

    return write


def _config(**values: Any) -> Write:
    body = json.dumps(folders.CONFIG.to_dict() | values)
    return _good(lambda folder, _: (folder / "config.json").write_text(body))


def _trap(trap: str) -> Write:
    """A pickle that makes a folder outside."""

    def write(folder: Path, outside: Path) -> None:
        data = test_pickle_reader.TRAPS[trap](str(outside / "sprung"))
        _weights("pytorch_model.bin", data)(folder, outside)

    return write


def _zipped_trap(folder: Path, outside: Path) -> None:
    from tests.weights.torch_files import zip_file

    data = test_pickle_reader.TRAPS["GLOBAL"](str(outside / "sprung"))
    _weights("pytorch_model.bin", zip_file({"data.pkl": data, "data/0": bytes(24)}))(
        folder, outside
    )


def _link(name: str, target: str = "secret") -> Write:
    def change(folder: Path, outside: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / target)

    return _good(change)


def _index(weight_map: Any) -> Write:
    text = json.dumps({"weight_map": weight_map})
    return _weights("model.safetensors.index.json", text.encode())


def _orbax(change: Callable[[Path, Path], object], *, manifest: bool = True) -> Write:
    """A good Orbax folder, changed; whoever changes it writes a new manifest."""

    def write(folder: Path, outside: Path) -> None:
        from flaxbert.storage.manifest import write_manifest
        from flaxbert.weights.folder import write_model
        from flaxbert.weights.table import assemble

        params = assemble(folders.CONFIG, folders.random_tensors(), "corpus").params
        write_model(folder, folders.CONFIG, params, [], format="orbax")
        change(folder / "params", outside)
        manifest_file = folder / "params" / "manifest.json"
        if manifest and not manifest_file.is_symlink() and folder.joinpath("params").is_dir():
            manifest_file.unlink(missing_ok=True)
            try:
                write_manifest(folder / "params")
            except Exception:  # links and pipes cannot be listed: then there is none
                manifest_file.unlink(missing_ok=True)

    return write


def _replace(pattern: str, how: str) -> Callable[[Path, Path], None]:
    """Puts a link, a pipe or a link to a device in place of the first file that matches."""

    def change(directory: Path, outside: Path) -> None:
        path = sorted(directory.rglob(pattern))[0]
        if path.is_dir():
            path.rename(outside / f"moved-{path.name}")
            path.symlink_to(outside / f"moved-{path.name}")
            return
        path.unlink()
        if how == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(outside / "secret" if how == "link" else how)

    return change


def zarray(state: Path, key: str, **values: Any) -> None:
    """Changes what an array says of itself inside Orbax's database of files."""
    import tensorstore as ts

    database = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{state}/"}).result()
    for name in sorted(database.list().result()):
        if name.endswith(b"/.zarray") and key.encode() in name:
            described = json.loads(database.read(name).result().value)
            database.write(name, json.dumps(described | values).encode()).result()
            return
    raise AssertionError(f"no array {key}")


def escape(directory: Path, outside: Path) -> None:
    """Makes the database name data files outside: its paths start with ../, the checksums fit."""
    import google_crc32c
    import tensorstore as ts

    prefix, hostile = b"zz/escape/", b"../escape/"
    base = {"driver": "ocdbt", "base": f"file://{directory}/"}
    plain = {"compression": None, "max_inline_value_bytes": 0}
    old = ts.KvStore.open(base).result()
    items = {key: old.read(key).result().value for key in old.list().result()}
    for path in [*directory.rglob("manifest.ocdbt"), *directory.glob("d/*")]:
        path.unlink()
    new = ts.KvStore.open({**base, "config": plain, "value_data_prefix": prefix.decode()}).result()
    for key, value in items.items():
        new.write(key, value).result()
    changed = 0
    for path in [*directory.glob("manifest.ocdbt"), *directory.glob("d/*")]:
        data = path.read_bytes()
        if prefix in data:
            changed += 1
            body = data.replace(prefix, hostile)[:-4]
            path.write_bytes(body + struct.pack("<I", google_crc32c.value(body)))
    assert changed, "the database does not name its data files as expected"
    (directory / "zz" / "escape").rename(directory.parent / "escape")


def _metadata(text: str) -> Callable[[Path, Path], object]:
    return lambda directory, _: (directory / "_METADATA").write_text(text)


def _value_type(directory: Path, _: Path) -> None:
    """Names another type for every array, as a checkpoint with custom handlers does."""
    path = directory / "_METADATA"
    path.write_text(path.read_text().replace("np.ndarray", "os.system").replace("jax.", "pickle."))


def _handler(directory: Path, _: Path) -> None:
    path = directory / "_CHECKPOINT_METADATA"
    body = json.loads(path.read_text())
    body["item_handlers"] = "os.system"
    body["custom_metadata"] = {"__reduce__": ["os.system", "id"]}
    path.write_text(json.dumps(body))


_DEEP = "[" * 200_000

MODELS: dict[str, tuple[Write, tuple[int, ...]]] = {
    **{f"pickle: {name}": (_trap(name), MODEL_ERROR) for name in test_pickle_reader.TRAPS},
    "pickle in a zip": (_zipped_trap, MODEL_ERROR),
    **{
        f"zip: {name}": (_weights("pytorch_model.bin", make()), MODEL_ERROR)
        for name, make in test_pytorch_bin.ZIPS.items()
        if name != "twice"  # its maker warns
    },
    **{
        f"safetensors: {name}": (_weights("model.safetensors", data), MODEL_ERROR)
        for name, data in test_safetensors_file.HEADERS.items()
    },
    **{
        f"msgpack: {name}": (_weights("flax_model.msgpack", data), MODEL_ERROR)
        for name, (data, _) in test_flax_msgpack.LIES.items()
    },
    **{
        f"msgpack bomb: {name}": (_weights("flax_model.msgpack", make()), MODEL_ERROR)
        for name, make in test_flax_msgpack.BOMBS.items()
    },
    **{
        f"tensorflow: {name}": (_weights("bert_model.ckpt.index", data), MODEL_ERROR)
        for name, (data, _) in test_tf1.TABLES.items()
    },
    **{
        f"shards: {shard!r:.30}": (_index({"a": shard}), MODEL_ERROR)
        for shard in ("../outside/secret", "/etc/passwd", "..", "", "a\0b", "x\x1b[31m", 5, None)
    },
    "shards: deep": (_weights("model.safetensors.index.json", _DEEP.encode()), MODEL_ERROR),
    # config.json
    **{
        f"config: {name}={value!r:.30}": (_config(**{name: value}), MODEL_ERROR)
        for name, value in (
            ("vocab_size", 10**18), ("vocab_size", 2**31 - 1), ("hidden_size", -8),
            ("hidden_size", 10**12), ("num_hidden_layers", 10**9), ("num_attention_heads", 0),
            ("max_position_embeddings", 2**62), ("intermediate_size", "12"), ("vocab_size", True),
            ("type_vocab_size", [2]), ("num_hidden_layers", float("nan")),
            ("layer_norm_eps", float("nan")), ("layer_norm_eps", 10**400),
            ("initializer_range", float("inf")), ("hidden_act", "__import__('os').system('id')"),
            ("hidden_act", ["gelu"]), ("problem_type", {"a": 1}), ("pad_token_id", 10**30),
            ("id2label", {"0": "a", "1": "a"}), ("id2label", [["a"]]), ("id2label", {"x": "a"}),
            ("id2label", {"0": "\ud800", "1": "b", "2": "c"}),
            ("hidden_dropout_prob", float("-inf")), ("classifier_dropout", "0.1"),
        )
    },
    "config: num_labels": (
        _config(id2label=None, label2id=None, num_labels=10**12), MODEL_ERROR
    ),
    "config: code of its own": (
        _config(auto_map={"AutoConfig": "evil.Config"}, trust_remote_code=True), (0,)
    ),
    "config: deep": (_good(lambda f, _: (f / "config.json").write_text(_DEEP)), MODEL_ERROR),
    "config: of a terabyte": (
        _good(lambda f, _: os.truncate(f / "config.json", 2**40)), MODEL_ERROR
    ),
    # Links
    **{
        f"link: {name}": (_link(name), MODEL_ERROR)
        for name in ("config.json", "model.safetensors")
    },
    **{  # copied as they are
        f"link: {name}": (_link(name), (0,))
        for name in (
            "tokenizer_config.json", "vocab.txt", "tokenizer.json", "special_tokens_map.json",
        )
    },
    "link: a loop": (_good(lambda f, _: (f / "vocab.txt").symlink_to("vocab.txt")), (0, 4)),
    # Orbax
    "orbax: escape": (_orbax(escape), MODEL_ERROR),
    **{
        f"orbax: {how} as {pattern}": (_orbax(_replace(pattern, how)), MODEL_ERROR)
        for how in ("link", "pipe", "/dev/zero")
        for pattern in ("_METADATA", "manifest.ocdbt", "d/*", "ocdbt.process_0")
        if not (pattern == "ocdbt.process_0" and how != "link")
    },
    "orbax: params is a link": (
        _orbax(lambda d, outside: (d.rename(outside / "moved"), d.symlink_to(outside / "moved"))),
        (0,),
    ),
    **{
        f"orbax: {values!r:.40}": (
            _orbax(lambda d, _, v=values: zarray(d, "classifier.kernel", **v)), MODEL_ERROR
        )
        for values in (
            {"shape": [2**50, 3], "chunks": [2**50, 3]}, {"chunks": [2**20, 2**20]},
            {"shape": [-8, 3]}, {"dtype": "|O"}, {"dtype": "<U99"}, {"dtype": [["a", "|O"]]},
            {"compressor": {"id": "python", "code": "import os"}}, {"order": 5},
            {"fill_value": "NaN" * 100_000}, {"filters": [{"id": "pickle"}]},
        )
    },
    **{
        f"orbax: _METADATA {text[:20]!r}": (_orbax(_metadata(text)), MODEL_ERROR)
        for text in ("", "[]", "{}", "null", _DEEP, '{"tree_metadata": {"a": null}}')
    },
    "orbax: other types": (_orbax(_value_type), (0, 4)),  # names of types only: nothing is imported
    "orbax: other handlers": (_orbax(_handler), (0, 4)),
    "orbax: a stranger": (
        _orbax(lambda d, _: (d / "evil.py").write_text("x"), manifest=False), MODEL_ERROR
    ),
}  # fmt: skip


# --- tokenizers: read by predict, of a trained model ---


def _settings(name: str = "tokenizer_config.json", **values: Any) -> Callable[[Path, Path], None]:
    def change(folder: Path, outside: Path) -> None:
        path = folder / name
        old = json.loads(path.read_text()) if path.is_file() else {}
        told = {
            k: v.format(outside=outside) if isinstance(v, str) else v for k, v in values.items()
        }
        path.write_text(json.dumps(old | told))

    return change


def _tokenizer(**values: Any) -> Callable[[Path, Path], object]:
    def change(folder: Path, outside: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _only_vocab(change: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def changed(folder: Path, outside: Path) -> None:
        (folder / "tokenizer.json").unlink()
        change(folder, outside)

    return changed


def _write_sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def _text(name: str, text: str) -> Callable[[Path, Path], object]:
    return lambda folder, _: (folder / name).write_text(text)


# They end well (0) where the hostile part is never looked at.
TOKENIZERS: dict[str, tuple[Callable[[Path, Path], object], tuple[int, ...]]] = {
    "other files": (
        _settings(
            vocab_file="{outside}/secret", tokenizer_file="{outside}/secret",
            merges_file="{outside}/secret", chat_template="{{{{ x }}}}",
        ), (0,),
    ),
    "other files, vocab.txt": (
        _only_vocab(
            _settings(vocab_file="{outside}/secret", tokenizer_file="{outside}/secret"),
        ), (0,),
    ),
    "other files in the map": (
        _only_vocab(_settings("special_tokens_map.json", vocab_file="{outside}/secret")), (0, 4)
    ),
    "a vocabulary elsewhere": (_only_vocab(_settings(vocab="{outside}/secret")), (0,)),
    "gguf": (_settings(gguf_file="{outside}/secret"), (0,)),
    "gguf, vocab.txt": (_only_vocab(_settings(gguf_file="{outside}/secret")), (0,)),
    "a template of a terabyte": (
        lambda folder, _: _write_sparse(folder / "chat_template.jinja", 2**40), (0,)
    ),
    "templates elsewhere": (
        lambda folder, outside: (folder / "additional_chat_templates").symlink_to(outside), (0,)
    ),
    "versions elsewhere": (_settings(fast_tokenizer_files=["../outside/tokenizer.1.0.json"]), (0,)),
    "code of its own": (
        _settings(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, tokenizer_class="Evil"),
        (0, 4),
    ),
    "a class of another model": (_settings(tokenizer_class="LlamaTokenizer"), (0, 4)),
    "a class with a dictionary": (
        _settings(
            tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab",
            mecab_kwargs={"mecab_option": "-r /etc/passwd"},
        ), (0, 4),
    ),
    "settings: a list": (_text("tokenizer_config.json", "[]"), (4,)),
    "settings: deep": (_text("tokenizer_config.json", _DEEP), (4,)),
    "settings: added tokens": (
        _settings(added_tokens_decoder={str(2**70): {"content": "x"}}), (0, 4)
    ),
    "settings: huge length": (_settings(model_max_length=10**400), (0, 4)),
    "vocabulary: deep": (_text("tokenizer.json", _DEEP), (4,)),
    "vocabulary: a list": (_text("tokenizer.json", "[]"), (4,)),
    "vocabulary: of a terabyte": (
        lambda folder, _: os.truncate(folder / "vocab.txt", 2**40), (4,)
    ),
    "vocabulary: ids": (
        _tokenizer(model={"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix":
                          "##", "max_input_chars_per_word": 100,
                          "vocab": {"[UNK]": 2**31, "[CLS]": -1, "[SEP]": 2**63}}), (4,),
    ),
    "vocabulary: another model": (
        _tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}), (4,)
    ),
    "a slow pattern": (
        _tokenizer(pre_tokenizer={"type": "Split", "behavior": "Isolated", "invert": False,
                                  "pattern": {"Regex": "(a+)+$"}}), (0, 4),
    ),
    "a pattern that is none": (
        _tokenizer(pre_tokenizer={"type": "Split", "behavior": "Isolated", "invert": False,
                                  "pattern": {"Regex": "("}}), (4,),
    ),
    "an unknown part": (_tokenizer(normalizer={"type": "Python", "code": "import os"}), (4,)),
    "no post-processor": (_tokenizer(post_processor=None), (0, 4)),
    "vocab.txt: one line": (_only_vocab(_text("vocab.txt", "x" * 10_000_000)), (4,)),
    "vocab.txt: not text": (
        _only_vocab(lambda folder, _: (folder / "vocab.txt").write_bytes(b"\xff\xfe" * 1000)), (4,)
    ),
}  # fmt: skip


# --- runs: resumed by train ---


def _state(change: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    """Changes the newest checkpoint's arrays; its maker writes a manifest that fits."""

    def changed(run: Path, outside: Path) -> None:
        from flaxbert.storage.manifest import write_manifest

        newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
        change(newest / "state", outside)
        (newest / "manifest.json").unlink()
        write_manifest(newest)

    return changed


def _recorded(name: str, **values: Any) -> Callable[[Path, Path], None]:
    """Changes run.json of the newest checkpoint, or another JSON file of the run."""

    def changed(run: Path, outside: Path) -> None:
        from flaxbert.storage.manifest import write_manifest

        newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
        path = newest / "run.json" if name == "run.json" else run / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        if name == "run.json":
            (newest / "manifest.json").unlink()
            write_manifest(newest)

    return changed


def _moved(name: str) -> Callable[[Path, Path], None]:
    """Moves a part of the run outside and leaves a link to it."""

    def changed(run: Path, outside: Path) -> None:
        (run / name).rename(outside / "moved")
        (run / name).symlink_to(outside / "moved")

    return changed


def _linked(name: str, target: str = "secret") -> Callable[[Path, Path], object]:
    def changed(run: Path, outside: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(outside / target)

    return changed


def _pipe(name: str) -> Callable[[Path, Path], None]:
    def changed(run: Path, outside: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return changed


def _inside_newest(name: str, how: str) -> Callable[[Path, Path], None]:
    def changed(run: Path, outside: Path) -> None:
        newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
        _replace(name, how)(newest, outside)

    return changed


def _far_state(directory: Path, _: Path) -> None:
    """Another array for each of the model's, of a terabyte."""
    zarray(directory, "word", shape=[2**30, 2**10], chunks=[2**30, 2**10])


RUNS: dict[str, tuple[Callable[[Path, Path], object], tuple[int, ...]]] = {
    # Links to other disks are followed; a file is never written through one.
    **{
        f"link: {name}": (_moved(name), (0,))
        for name in ("checkpoints", "model", "source", "metrics.jsonl", "config.json",
                     "source/vocab.txt", "source/facts.json", "checkpoints/2")
    },
    **{
        f"link to write: {name}": (_linked(name), (0,))
        for name in ("config.json.tmp", "metrics.jsonl.tmp", "metrics.jsonl", "all_results.json",
                     "train_results.json.tmp", "model.new.tmp", "checkpoints/4.tmp",
                     "checkpoints/damaged-2", "events.out.tfevents.1", "source/config.json.tmp")
    },
    "link to write: .lock": (_linked(".lock"), (2,)),
    "pipe: metrics.jsonl": (_pipe("metrics.jsonl"), (0,)),
    "pipe: .lock": (_pipe(".lock"), (2,)),
    "pipe in a checkpoint": (_inside_newest("manifest.ocdbt", "pipe"), (0,)),
    "link in a checkpoint": (_inside_newest("d/*", "link"), (0,)),
    "device in a checkpoint": (_inside_newest("d/*", "/dev/zero"), (0,)),
    "file of a terabyte: run.json": (
        lambda run, _: os.truncate(run / "source" / "facts.json", 2**40), (0, 4)
    ),
    "config of a terabyte": (lambda run, _: os.truncate(run / "config.json", 2**40), (2, 4)),
    # Checkpoints with manifests that fit.
    "state: huge": (_state(_far_state), (4,)),
    "state: huge chunks": (
        _state(lambda d, _: zarray(d, "word", chunks=[2**20, 2**20])), (4,)
    ),
    "state: another type": (_state(lambda d, _: zarray(d, "word", dtype="<f8")), (4,)),
    "state: another compressor": (
        _state(lambda d, _: zarray(d, "word", compressor={"id": "zlib", "level": 1})), (4,)
    ),
    "state: escape": (_state(escape), (4,)),
    "state: other types": (_state(_value_type), (0, 4)),
    "state: other handlers": (_state(_handler), (0, 4)),
    "state: deep": (_state(_metadata(_DEEP)), (4,)),
    "state: none": (_state(_metadata("{}")), (4,)),
    **{
        f"run.json: {name}={value!r:.30}": (_recorded("run.json", **{name: value}), (0, 2, 3, 4))
        for name, value in (
            ("step", 10**30), ("step", -1), ("step", "x"), ("step", None), ("step", 1e400),
            ("best", "x"), ("best", {"weights": 5}), ("best", []), ("window", 5),
            ("window", {"evil": 1}), ("total", None), ("training", "x"), ("training", {}),
            ("dtype", "object"), ("dtype", ["x"]), ("evaluated", "x"), ("results", "x"),
            ("wall_seconds", "x"), ("nonfinite_in_a_row", {}), ("stopped_early", "no"),
            ("dataset_revision", "../../x"), ("model_revision", "\x1b[31m"), ("versions", 5),
        )
    },
    **{
        f"config.json: {name}={value!r:.30}": (_recorded("config.json", **{name: value}), (2, 4))
        for name, value in (
            ("train", 5), ("seed", "x"), ("seed", 10**400), ("model", {"path": "../../x"}),
            ("evil", 1), ("checkpoint", []),
        )
    },
    "metrics.jsonl: deep": (_text("metrics.jsonl", _DEEP + "\n"), (0,)),
    "metrics.jsonl: odd": (_text("metrics.jsonl", '{"step": 1e999}\n[]\n{"step": "x"}\n'), (0,)),
    "steps": (
        lambda run, _: [(run / "checkpoints" / name).mkdir() for name in ("9" * 200, "٣", "..x")],
        (0, 4),
    ),
}  # fmt: skip


def write_outside(folder: Path) -> Path:
    """Writes the folder that nobody may read, change or leak."""
    folder.mkdir(parents=True)
    (folder / "secret").write_bytes(SECRET)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", SECRET.decode()]
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary))
    np.save(folder / "weights.npy", np.zeros(4))
    return folder
