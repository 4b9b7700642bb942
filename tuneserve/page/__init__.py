"""A page of HTML for people: tiles with figures at the top, and sections with plots and tables. It needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@dataclass(frozen=True)
class Section:
    """A heading with plots and one table below it; `numbers` are the columns that are right-aligned."""

    title: str
    note: str = ""
    figures: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    numbers: Sequence[int] = field(default_factory=tuple)


def render(title: str, summary: str, tiles: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Returns the page; `tiles` are names with values. Texts are not trusted: all of them are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("page.html.j2")
    return template.render(title=title, summary=summary, tiles=tiles, sections=sections)
