"""Help of groups of commands."""

import click
from click.testing import CliRunner

from tuneserve.call.groups import Group

LONG = "Does " + "very " * 60 + "much."


@click.command("long", help=f"{LONG} And more.")
def long() -> None: ...


@click.command("short", help="Does little.")
def short() -> None: ...


def test_commands_are_under_their_headings_each_with_its_whole_first_sentence() -> None:
    group = Group(commands=[long, short], headings={"First": ["short"], "Second": ["long"]})
    shown = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    assert shown.index("First:") < shown.index("short") < shown.index("Second:") < shown.index("Does very")
    assert LONG in " ".join(shown.split())
    assert "And more" not in shown


def test_without_headings_there_is_one_for_all() -> None:
    shown = CliRunner().invoke(Group(commands=[long, short]), ["--help"]).output
    assert shown.index("Commands:") < shown.index("long") < shown.index("short")
