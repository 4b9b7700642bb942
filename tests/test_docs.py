"""The pages: that links lead somewhere, that commands are ones there are, and that the README is short."""

import re
import shlex
from pathlib import Path

import click
import pytest

from tuneserve.cli import cli

DOCS = Path(__file__).parents[1] / "docs"


def test_links_lead_somewhere() -> None:
    root = DOCS.parent
    for page in (root / "README.md", *DOCS.glob("*.md"), root / "helm" / "README.md"):
        for target, _, section in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert not section or section in {title.lower().replace(" ", "-") for title in titles}, (page.name, section)


def commands() -> list[str]:
    """The commands in the pages, without the shell's part."""
    found = set[str]()
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md"), DOCS.parent / "helm" / "README.md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ {4}(?:.* (?:&&|\|) )?(tuneserve .*)$", text, re.MULTILINE):
            found.add(re.split(r"  +#| [&|<>]", line)[0].strip())
    return sorted(found)


@pytest.mark.parametrize("line", commands())
def test_a_command_of_a_page_is_one_that_there_is(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its files are not here.
    for kind in (click.Path, click.File):
        monkeypatch.setattr(kind, "convert", lambda _, value, *__: value if isinstance(value, Path) else Path(value))
    name, *given = shlex.split(line, comments=True)
    with cli.make_context(name, given) as context:
        while isinstance(group := context.command, click.Group):
            name, command, given = group.resolve_command(context, [*context._protected_args, *context.args])
            assert command
            context = command.make_context(name, given, parent=context)


def test_where_to_change_names_what_is_there() -> None:
    table = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where to change")[2]
    rows = re.findall(r"^\| (?!what|-)(.*?) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) > 9
    for question, where in rows:
        parts = re.findall(r"`([\w/]+\.py)`:((?:(?!`[\w/]+\.py`).)*)", where)
        assert parts, question
        for file, rest in parts:
            text = (DOCS.parent / file).read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", rest):
                found = re.search(rf"^\s*(?:async )?(?:def|class) {name}\b|^{name}\b.* = ", text, re.MULTILINE)
                assert found, f"{question}: no {name} in {file}"


def test_the_readme_is_short() -> None:
    assert len((DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()) < 120
