"""What docs/serving.md says of the server's settings is what the server has: every one of them, with its default."""

import re
from pathlib import Path

import yaml

from tuneserve.server.config import ModelConfig, ServerConfig, TlsConfig

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"


def settings_block() -> str:
    [block] = re.findall(r"^    listen: .*\n(?:    .*\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return block


def test_every_setting_is_there_with_its_default() -> None:
    block = settings_block()
    server = yaml.safe_load(block)
    [model] = server["models"].values()
    for kind, values in ((ServerConfig, server), (TlsConfig, server["tls"]), (ModelConfig, model)):
        assert values.keys() == kind.model_fields.keys()
        for name, field in kind.model_fields.items():
            if name == "models" or field.is_required():
                continue
            # Where an example stands in place of the default, the comment says so.
            [comment] = re.findall(rf"^ +{name}:.*# (.*)$", block, re.MULTILINE)
            assert comment.startswith("[") == (values[name] != field.default), name


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
