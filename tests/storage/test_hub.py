"""Models and data by hub id, from a server on loopback that speaks the hub's protocol.

Errors are tried in this process; the whole story (fetch, train, the server goes, train again) runs
as real commands with the environment variables that users set.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from flaxbert.config import Data
from flaxbert.data.sources.hub_datasets import open_dataset
from flaxbert.errors import DataError, ModelFileError
from flaxbert.weights.folder import read_config
from flaxbert.weights.resolve import resolve_model
from tests.commands import start
from tests.glue_data import write_glue
from tests.hub_server import TOKEN, HubServer, hub_server

MODEL, DATASET = "google-bert/bert-base-cased", "nyu-mll/glue"


@pytest.fixture(scope="module")
def repositories(tiny_bert, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny_bert, root / "models" / MODEL)
    # What must never be fetched: programs, and the formats that come after safetensors.
    for name in ("modeling_custom.py", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"):
        path = root / "models" / MODEL / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('this ran')")
    write_glue(root / "datasets" / DATASET, ("mrpc", "rte"))
    (root / "datasets" / DATASET / "glue.py").write_text("raise SystemExit('this ran')")
    return root


@pytest.fixture
def server(repositories, monkeypatch, tmp_path):
    """This process's hub client, pointed at a server of its own and an empty cache."""
    constants = huggingface_hub.constants
    with hub_server(repositories) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def _data(**fields) -> Data:
    return Data(dataset=DATASET, **fields)


def test_only_the_safest_weights_are_fetched(server):
    folder, commit = resolve_model(MODEL)
    assert folder.name == commit == server.commit_of(server.root / "models" / MODEL)
    names = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert "model.safetensors" in names
    assert not any(name.endswith((".py", ".bin", ".h5", ".onnx")) for name in names)
    assert not server.asked("/resolve/main/")  # every file by its commit


def test_other_weights_where_there_are_no_safetensors(server, tmp_path):
    folder = tmp_path / "copy" / "models" / "someone" / "old"
    shutil.copytree(server.root / "models" / MODEL, folder)
    (folder / "model.safetensors").unlink()
    server.root = tmp_path / "copy"
    fetched, _ = resolve_model("someone/old")
    assert (fetched / "pytorch_model.bin").is_file()
    assert not list(fetched.rglob("*.py"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "only an adapter"),
        (["model_index.json", "unet/config.json"], "diffusers pipeline"),
        (["model.gguf", "README.md"], "has no config.json and no weights that can be read"),
    ],
)
def test_a_repository_of_something_else_is_named(files, said, server, tmp_path):
    folder = tmp_path / "copy" / "models" / "someone" / "other"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    server.root = tmp_path / "copy"
    with pytest.raises(ModelFileError) as caught:
        read_config(resolve_model("someone/other")[0])
    assert said in str(caught.value)


def test_only_parquet_of_the_configuration_is_fetched(server):
    found = open_dataset(_data(), "rte", "")
    assert found.files.keys() == {"train", "validation", "test"}
    assert found.revision == server.commit_of(server.root / "datasets" / DATASET)
    assert not server.asked(".py") and not server.asked("/mrpc/")
    assert server.asked("/rte/train-")


def test_revisions(server):
    commit = server.commit_of(server.root / "models" / MODEL)
    server.revisions = {"v1": commit, "refs/convert/parquet": "f" * 40}
    assert resolve_model(MODEL, "v1") == resolve_model(MODEL, commit)
    with pytest.raises(ModelFileError, match="no revision 'v2'"):
        resolve_model(MODEL, "v2")
    with pytest.raises(DataError, match="no revision 'v2'"):
        open_dataset(_data(), "rte", "v2")


def test_a_cached_commit_asks_nothing(server):
    _, commit = resolve_model(MODEL)
    count = len(server.requests)
    resolve_model(MODEL, commit)
    assert len(server.requests) == count


def test_a_part_that_another_program_fetched_is_completed(server):
    commit = server.commit_of(server.root / "models" / MODEL)
    huggingface_hub.hf_hub_download(MODEL, "config.json", revision=commit)
    folder, _ = resolve_model(MODEL, commit)
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()


def test_missing_private_gated_and_broken(server, monkeypatch):
    with pytest.raises(ModelFileError, match="there is no such model, or it is private"):
        resolve_model("someone/nothing")
    with pytest.raises(DataError, match="there is no such dataset, or it is private"):
        open_dataset(Data(dataset="someone/nothing"), "", "")
    server.private = {MODEL}
    with pytest.raises(ModelFileError, match="set HF_TOKEN"):
        resolve_model(MODEL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve_model(MODEL)[1]
    server.gated = {DATASET}
    with pytest.raises(DataError, match="granted by its owner only") as caught:
        open_dataset(_data(), "rte", "")
    assert TOKEN not in str(caught.value)
    server.broken = True
    with pytest.raises(DataError, match="cannot be reached") as caught:
        open_dataset(Data(dataset="someone/else"), "", "")
    assert "--config=configs/quickstart.py" in str(caught.value)
    assert "config.data.dataset=FOLDER" in str(caught.value)


def test_a_server_that_goes_between_two_fetches(server, tmp_path):
    """What is not in the cache is told at once, not after a minute of retries."""
    open_dataset(_data(), "rte", "")
    server.close()
    assert open_dataset(_data(), "rte", "").files  # the cache has all of it
    with pytest.raises(DataError, match="Connection refused"):
        open_dataset(_data(), "mrpc", "")
    server.__init__(server.root)  # for the fixture to close


@pytest.fixture(scope="module")
def story(repositories, tmp_path_factory):
    """Trains rte by hub ids; then again with the server gone; then offline and another task."""
    home = tmp_path_factory.mktemp("story")
    hub = HubServer(repositories)
    hub.private = {MODEL, DATASET}
    environment = {
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "JAX_NUM_CPU_DEVICES": "1",
    }

    def train(name: str, task: str, **variables: str):
        process = start(
            "train",
            f"--config=configs/glue.py:{task}",
            f"--workdir={home / name}",
            "--config.train.steps=1",
            env=environment | variables,
        )
        out, err = process.communicate(timeout=200)
        return process.returncode, out + err

    done = {"online": train("online", "rte")}
    asked = list(hub.requests)
    hub.close()
    done["gone"] = train("gone", "rte")
    done["offline"] = train("offline", "mrpc", HF_HUB_OFFLINE="1")
    return home, done, asked, hub


@pytest.mark.slow
def test_train_by_hub_ids_with_the_users_variables(story):
    home, done, asked, hub = story
    code, text = done["online"]
    assert code == 0, text
    of_repositories = [request for request in asked if "agent-harnesses" not in request[1]]
    assert [r for r in of_repositories if r[2] != f"Bearer {TOKEN}"] == []
    facts = json.loads((home / "online" / "source" / "facts.json").read_text())
    assert facts["model_revision"] == hub.commit_of(hub.root / "models" / MODEL)
    assert facts["dataset_revision"] == hub.commit_of(hub.root / "datasets" / DATASET)
    card = (home / "online" / "model" / "README.md").read_text()
    assert f"{MODEL} at {facts['model_revision']}" in card
    assert list((home / "hf" / "hub").glob("models--*"))


@pytest.mark.slow
def test_the_same_with_the_server_gone_and_the_cache_warm(story):
    home, done, _, _ = story
    code, text = done["gone"]
    assert code == 0, text
    results = [
        (home / name / "model" / "model.safetensors").read_bytes() for name in ("online", "gone")
    ]
    assert results[0] == results[1]


@pytest.mark.slow
def test_offline_and_not_cached_says_what_to_do(story):
    _, done, _, _ = story
    code, text = done["offline"]
    assert code == 3
    assert "Traceback" not in text
    assert "config.data.dataset=FOLDER" in text and "configs/quickstart.py" in text


@pytest.mark.slow
def test_the_token_is_nowhere_in_what_came_out(story):
    home, done, _, _ = story
    secret = TOKEN.encode()
    assert all(TOKEN not in text for _, text in done.values())
    assert not [path for path in home.rglob("*") if path.is_file() and secret in path.read_bytes()]
