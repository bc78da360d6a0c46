"""Data sets of the hub, or folders with the same layout: fetched, found and read.

Only Parquet files are fetched. A folder may also be one that `save_to_disk` of the `datasets`
library made, with Arrow files. The program of a data set is never run.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxbert.config import Data
from flaxbert.data.rows import Rows, joined, near_name
from flaxbert.data.sources import Task, files
from flaxbert.errors import ConfigError, DataError, ModelFileError
from flaxbert.storage.hub import CARD, HubError, card_header, fetch, is_hub_id
from flaxbert.storage.store import url_refusal
from flaxbert.storage.workdir import read_json

TASKS = {"text": Task()}

# Files of `save_to_disk`: of several splits, and of each.
_SAVED_SPLITS, _SAVED = "dataset_dict.json", "state.json"

_BY_NAME = ""  # instead of a split: the names of the files tell their splits


@dataclasses.dataclass(frozen=True)
class HubData:
    """One configuration of a hub data set (or of a folder with its layout), on this disk."""

    name: str  # for messages
    files: dict[str, list[Path]]  # split: Parquet or Arrow files
    revision: str  # the commit, "" for a folder
    data: Data

    def parts(self, split: str) -> dict[str, str]:
        named = getattr(self.data, split) if split in ("train", "validation", "test") else ""
        if split == "validation" and not named:
            found = split in self.files and not self.data.validation_fraction
            return {"": split} if found else {}
        return {"": named or split}

    def read(self, part: str, columns: Mapping[str, str], names: Sequence[str] = ()) -> Rows:
        """Returns the rows of a split; label ids are replaced by the names of the data set, or else
        by `names` (in id order)."""
        if part not in self.files:
            raise ConfigError(
                f"{self.name}: there is no split {part!r}.{near_name(self.files, part)} "
                f"Splits: {', '.join(map(repr, self.files))}."
            )
        read = [files.read_rows(f, columns, self.data.on_bad_row) for f in self.files[part]]
        rows = joined(read, f"{self.name} {part}")
        if not names or "label" not in rows.columns:
            return rows
        return dataclasses.replace(
            rows,
            columns={**rows.columns, "label": _named(rows.columns["label"], names)},
            class_names=rows.class_names or {"label": tuple(names)},
        )


def open_data(data: Data, revision: str) -> HubData | None:
    if not data.dataset:
        return None
    return open_dataset(data, data.dataset_config, revision or data.dataset_revision)


def open_dataset(data: Data, config: str, revision: str) -> HubData:
    """Finds the data set `data.dataset` on the hub or in a folder, and fetches its Parquet files.

    `config` names the configuration, "" = the data set's default; `revision` is a branch, tag or
    commit on the hub. Raises ConfigError for a revision of a folder, or an unknown configuration,
    DataError if there is no such data set, or it has no Parquet files.
    """
    name = data.dataset
    local = Path(name)
    if local.exists():
        if revision:
            raise ConfigError(
                f"config.data.dataset_revision={revision!r} is for hub ids; {name} is a folder."
            )
        if not local.is_dir():
            raise DataError(
                f"{name}: expected a folder of Parquet files or a hub id. For a single file set "
                "config.data.task=text and config.data.train=FILE."
            )
        folder, commit = local, ""
    elif refusal := url_refusal(name):
        raise DataError(refusal)
    elif not is_hub_id(name):
        raise DataError(f"{name!r}: there is no such folder, and it is no hub id (OWNER/NAME).")
    else:
        try:
            folder = fetch("dataset", name, revision, [CARD])
            commit = folder.name
            fetch("dataset", name, commit, _patterns(folder, name, config))
        except HubError as error:
            example = f"FOLDER/{data.dataset_config or 'NAME'}/train-00000-of-00001.parquet"
            raise DataError(
                f"data set {name!r}: there is no such folder; as a hub id: {error} A folder for "
                f"config.data.dataset=FOLDER has the hub's layout, as {example}."
            ) from error
    title = f"{name} ({config})" if config else name
    return HubData(title, _splits(folder, name, config), commit, data)


def _patterns(folder: Path, name: str, config: str) -> list[str]:
    """Returns shell patterns of the Parquet files of a configuration."""
    configurations = _configurations(folder)
    if not configurations:
        return [f"{config}/*.parquet"] if config else ["*.parquet"]
    chosen = _choose(configurations, name, config)
    patterns = [pattern for split in chosen.values() for pattern in split]
    return [_parquet_only(pattern, name) for pattern in patterns]


def _parquet_only(pattern: str, name: str) -> str:
    if pattern.endswith("*"):
        return f"{pattern}.parquet"
    if not pattern.endswith(".parquet"):
        raise DataError(
            f"data set {name!r}: {pattern} is no Parquet file, and no other kind is fetched. "
            "Download it, then set config.data.task=text and config.data.train=FILE; or try "
            "config.data.dataset_revision=refs/convert/parquet."
        )
    return pattern


def _configurations(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Returns {configuration: {split: patterns}} of the data set's card, the default one first; {}
    if it has none. See https://huggingface.co/docs/hub/datasets-manual-configuration."""
    found: dict[str, dict[str, list[str]]] = {}
    entries = [e for e in _as_list(card_header(folder).get("configs")) if isinstance(e, dict)]
    for entry in sorted(entries, key=lambda entry: entry.get("default") is not True):
        splits: dict[str, list[str]] = {}
        if isinstance(entry.get("data_dir"), str) and "data_files" not in entry:
            splits[_BY_NAME] = [f"{entry['data_dir'].removeprefix('./').rstrip('/')}/*"]
        for part in _as_list(entry.get("data_files")):
            part = {"split": "train", "path": part} if isinstance(part, str) else part
            if isinstance(part, dict) and isinstance(part.get("split"), str):
                paths = [path for path in _as_list(part.get("path")) if isinstance(path, str)]
                patterns = splits.setdefault(part["split"], [])
                patterns += [path.removeprefix("./") for path in paths]
        if any(splits.values()):
            found[str(entry.get("config_name", "default"))] = splits
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _choose(
    configurations: dict[str, dict[str, list[str]]], name: str, config: str
) -> dict[str, list[str]]:
    if config and config not in configurations:
        raise ConfigError(
            f"config.data.dataset_config: {name} has no configuration {config!r}."
            f"{near_name(configurations, config)} It has {', '.join(map(repr, configurations))}."
        )
    if not config and len(configurations) > 1 and "default" not in configurations:
        raise ConfigError(
            f"config.data.dataset_config is empty: {name} has the configurations "
            f"{', '.join(map(repr, configurations))}. Name one."
        )
    return configurations[config or next(iter(configurations))]


def _splits(folder: Path, name: str, config: str) -> dict[str, list[Path]]:
    """Returns {split: files} of a configuration in a folder."""
    if saved := _saved_to_disk(folder / config) or _saved_to_disk(folder):
        return saved
    configurations = _configurations(folder)
    present = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    relative = {path.relative_to(folder).as_posix(): path for path in present}
    chosen = _choose(configurations, name, config) if configurations else {}
    if _BY_NAME in chosen:
        inside = chosen[_BY_NAME][0].removesuffix("/*")
        if inside.startswith("/") or ".." in Path(inside).parts:
            raise DataError(
                f"{folder / CARD}: data_dir {inside!r} is no folder of the data set. Correct it."
            )
        found = _by_name(folder / inside)
    elif chosen:
        found = {
            split: [p for n, p in relative.items() if any(_matches(n, q) for q in patterns)]
            for split, patterns in chosen.items()
        }
    else:
        found = _by_name(folder / config if config else folder)
    found = {split: files for split, files in found.items() if files}
    if not found:
        raise DataError(
            f"data set {name!r}: has no Parquet files{f' of {config}' if config else ''}. A data "
            "set that is a program is not run. For one of the hub's try "
            "config.data.dataset_revision=refs/convert/parquet; or give files by "
            "config.data.task=text and config.data.train=FILE."
        )
    return found


def _saved_to_disk(folder: Path) -> dict[str, list[Path]]:
    """Returns {split: Arrow files} of a folder that `save_to_disk` made, of one split or several;
    {} of any other."""
    if (folder / _SAVED_SPLITS).is_file():
        parts = {}
        for name in map(str, _as_list(_read(folder / _SAVED_SPLITS).get("splits"))):
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise DataError(
                    f"{folder / _SAVED_SPLITS}: {name!r} is no name of a split. Expected that of a "
                    "folder beside this file. Save the data set again."
                )
            parts[name] = folder / name
    elif (folder / _SAVED).is_file() and list(folder.glob("*.arrow")):
        parts = {str(_read(folder / _SAVED).get("_split") or "train"): folder}
    else:
        return {}
    found = {}
    for split, part in parts.items():
        entries = _as_list(_read(part / _SAVED).get("_data_files"))
        names = [str(entry.get("filename")) for entry in entries if isinstance(entry, dict)]
        found[split] = [part / Path(name).name for name in names]
    return {split: files for split, files in found.items() if files}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except ModelFileError as error:
        raise DataError(f"{error} Save the data set again.") from error
    return values if isinstance(values, dict) else {}


def _matches(name: str, pattern: str) -> bool:
    """As the hub's patterns: ** stands for any folders, or none."""
    return fnmatch.fnmatch(name, pattern) or (
        "**/" in pattern and fnmatch.fnmatch(name, pattern.replace("**/", "", 1))
    )


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Splits by the names of files and folders, as the `datasets` library finds them."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    if not folder.is_dir():
        return {}
    base = folder.resolve().as_posix()
    try:
        found = DataFilesDict.from_patterns(
            get_data_patterns(base), base, allowed_extensions=[".parquet"]
        )
    except (EmptyDatasetError, FileNotFoundError):
        return {}
    return {str(split): [Path(str(path)) for path in paths] for split, paths in found.items()}


def _named(values: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Returns the names of labels that are still ids; a hidden label stays -1."""

    def name(value: Any) -> Any:
        known = type(value) is int and 0 <= value < len(names)
        return names[value] if known else value

    return [name(value) for value in values]
