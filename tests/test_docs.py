"""What docs/serving.md says of the server's settings is what the server has: every one of them, with its default."""

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from tuneserve.server.config import ModelConfig, ServerConfig, TlsConfig

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"


def settings_block() -> str:
    [block] = re.findall(r"^    listen: .*\n(?:    .*\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return block


def default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def test_every_setting_is_there_with_its_default() -> None:
    block = settings_block()
    server = yaml.safe_load(block)
    [model] = server["models"].values()
    for kind, values in ((ServerConfig, server), (TlsConfig, server["tls"]), (ModelConfig, model)):
        assert values.keys() == {field.name for field in fields(kind)}
        for field in fields(kind):
            if field.name in ("models", "path") or default(field) is MISSING:
                continue
            # Where an example stands in place of the default, the comment says so.
            [comment] = re.findall(rf"^ +{field.name}:.*# (.*)$", block, re.MULTILINE)
            assert comment.startswith("[") == (values[field.name] != default(field)), field.name


def test_links_lead_somewhere() -> None:
    root = PAGE.parents[1]
    for page in (root / "README.md", *PAGE.parent.glob("*.md"), root / "helm" / "README.md"):
        for target, _, section in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert not section or section in {title.lower().replace(" ", "-") for title in titles}, (page.name, section)


def test_the_readme_is_short() -> None:
    assert len((PAGE.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()) < 120
