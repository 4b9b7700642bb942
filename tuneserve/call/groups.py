"""Groups of commands whose help lists are not truncated."""

from collections.abc import Mapping, Sequence
from typing import Any

import click


class Group(click.Group):
    """Lists its commands under headings, each with the whole first sentence of its help."""

    def __init__(self, *args: Any, headings: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        """`headings` contains every command once; without it, there is one heading for all."""
        super().__init__(*args, **kwargs)
        self._headings = headings

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Group."""
        for heading, names in (self._headings or {"Commands": self.list_commands(context)}).items():
            commands = [(name, self.get_command(context, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl([(name, one.get_short_help_str(limit=1000)) for name, one in commands if one])
