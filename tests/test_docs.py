"""What the pages say is there: the config page is current, links lead somewhere, messages exist."""

from __future__ import annotations

import importlib.util
import re
import types

import pytest

from tests.commands import ROOT

PAGES = [ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_config_page_is_what_the_classes_say():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = generate.PAGE.read_text(encoding="utf-8")
    assert page == generate.page(), "run python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_fields_and_flags_that_a_page_names_exist(page):
    from flaxbert.config import Config, flatten, to_dict

    fields = flatten(to_dict(Config())).keys()
    groups = {name.split(".")[0] for name in fields}
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"--config\.([a-z_0-9.]*[a-z0-9])", text)
    in_code = re.findall(r"`([a-z]+\.[a-z_0-9]+)[=`]", text)
    files = re.compile(r".*\.(csv|tsv|jsonl|parquet|py|json|md|safetensors|txt|params)")
    named += [name for name in in_code if name.split(".")[0] in groups and not files.match(name)]
    assert set(named) - fields - {"x.y"} == set()


def test_every_message_of_the_errors_page_exists():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "flaxbert").rglob("*.py")]
    code = re.sub(r'"\s*f?r?"', "", "\n".join(sources))  # adjacent strings are one
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \| ", page.split("## Common ones")[1], re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        parts = re.split(r"\.\.\.|\b[NMX]\b|config\.|\. ", message)
        for part in (part.strip(" .:?(),") for part in parts):
            assert len(part) < 5 or part in code, f"{message}: {part!r}"


def test_the_policies_of_bad_rows_are_all_described():
    from flaxbert.config import _CHOICES

    page = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    for field, choices in _CHOICES.items():
        if field.startswith("data.on_"):
            listed = ", ".join(f"`{choice}`" for choice in choices)
            assert f"| `{field}` | {listed} |" in page


def test_the_example_of_a_head_keeps_the_contract():
    """Its two files run, and its head has all that `Head` demands; samples.py is as it says."""
    from flaxbert.heads import Head
    from flaxbert.model import binding
    from flaxbert.model.bert_config import BertConfig

    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    head, predictor, samples = page.split("```diff\n")[1].split("```")[0].split("--- ")[1:]
    made = {}
    for name, diff in (("head", head), ("predictor", predictor)):
        added = [line[1:] for line in diff.splitlines() if line[:1] == "+" and line[:3] != "+++"]
        module = types.ModuleType(f"example_{name}")
        exec("\n".join(added), vars(module))
        made[name] = module
    [example] = made["head"].HEADS.values()
    assert isinstance(example, Head)
    assert example.architecture == made["predictor"].PREDICTOR.model_class.architecture
    config = BertConfig(num_hidden_layers=1, architecture=example.architecture)
    assert example.prefix in binding.abstract_params(example.module, config)
    file = (ROOT / "tests" / "heads" / "samples.py").read_text(encoding="utf-8")
    for line in samples.splitlines()[1:]:
        assert line[:1] in "+@" or line[1:] in file, line


def test_the_files_that_contributing_names_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add a head")[0]
    for path in re.findall(r"`((?:flaxbert|tests|docs|launch)/[a-z_0-9/.]+)`", page):
        assert (ROOT / path).exists() or path.startswith("tests/results/"), path
