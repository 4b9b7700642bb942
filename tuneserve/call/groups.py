"""Help under headings: groups of commands, and commands with many options."""

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


class Grouped(click.Command):
    """Lists its options under headings."""

    def __init__(self, *args: Any, headings: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        """`headings` contains the names of options; the others come last."""
        super().__init__(*args, **kwargs)
        self._headings = headings

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Command."""
        records = {one.name: record for one in self.get_params(context) if (record := one.get_help_record(context))}
        groups = {heading: [records.pop(name) for name in names] for heading, names in self._headings.items()}
        for heading, rows in (groups | {"More": list(records.values())}).items():
            with formatter.section(heading):
                formatter.write_dl(rows)
