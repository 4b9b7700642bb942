"""docs/settings.md and docs/schemas are what the models say, and every example in the repository is right by them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tuneserve import schema
from tuneserve.finetune.search.space import SEARCHED
from tuneserve.server.config import ModelConfig
from tuneserve.server.text import redaction

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted((DOCS.parent / "finetune" / "examples").glob("*.yaml"))


def errors(name: str, values: object) -> list[str]:
    return [error.json_path for error in Draft202012Validator(schema.json_schema(name)).iter_errors(values)]


def test_the_page_is_of_this_code() -> None:
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == schema.page(), "run make settings"


@pytest.mark.parametrize("name", schema.FILES)
def test_the_schemas_are_of_this_code(name: str) -> None:
    assert (DOCS / "schemas" / f"{name}.json").read_text(encoding="utf-8") == schema.in_json(name) + "\n", (
        "run make settings"
    )
    Draft202012Validator.check_schema(json.loads(schema.in_json(name)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_name_their_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    [named] = re.findall(r"\A# yaml-language-server: \$schema=(.*)\n", text)
    assert (path.parent / named).resolve() == DOCS / "schemas" / "finetune.json"
    assert errors("finetune", yaml.safe_load(text)) == []


def test_the_servers_example_is_right() -> None:
    [block] = re.findall(r"^    listen: .*\n(?:    .*\n)+", (DOCS / "serving.md").read_text("utf-8"), re.MULTILINE)
    assert errors("serve", yaml.safe_load(block)) == []


TRAINING = {"task": "generation", "train": "d.jsonl", "output": "o"}


@pytest.mark.parametrize(
    ("name", "values", "wrong"),
    [
        ("finetune", TRAINING | {"base_model": "m"}, []),
        ("finetune", TRAINING | {"continue_from": "m", "replay": None}, []),
        ("finetune", TRAINING | {"base_model": "m", "search": {"epochs": [1, 2]}}, []),
        ("finetune", TRAINING, ["$"]),
        ("finetune", TRAINING | {"base_model": "m", "epochs": 0}, ["$.epochs"]),
        ("finetune", TRAINING | {"base_model": "m", "epoch": 1}, ["$"]),
        ("serve", {"models": {"a": {"path": "m", "max_queue": 0}}}, ["$.models.a.max_queue"]),
        ("serve", {"listen": "nowhere"}, ["$.listen"]),
        ("serve", {"tls": {"certificate": "c"}}, ["$.tls"]),
        ("tenants", {"tenants": {"a": {"keys": ["tsk_x"]}}}, ["$.tenants.a.keys[0]"]),
        ("tenants", {"tenants": {"a": {"keys": ["sha256:" + 64 * "0"], "role": "root"}}}, ["$.tenants.a.role"]),
    ],
)
def test_an_editor_sees_what_is_wrong(name: str, values: dict[str, Any], wrong: list[str]) -> None:
    assert errors(name, values) == wrong


def test_every_setting_says_what_it_does() -> None:
    for name in schema.FILES:
        found = schema.json_schema(name)
        for part in (found, *found.get("$defs", {}).values()):
            assert all(value["description"] for value in part["properties"].values())


def test_words_that_stand_for_lists_elsewhere() -> None:
    assert all(kind in str(ModelConfig.model_fields["redact"].description) for kind in redaction.KINDS)
    assert set(SEARCHED) < schema.json_schema("finetune")["properties"].keys()
