"""What the commands of `tuneserve call` share: the options to reach a server, and the printing of answers."""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

Function = TypeVar("Function", bound=Callable[..., Any])

_File = click.Path(path_type=Path, exists=True, dir_okay=False)

model_option = click.option("--model", required=True, metavar="NAME", help="The model's name at the server.")
truncate_option = click.option("--truncate", is_flag=True, help="Truncate a text that is too long. Default: refuse it.")


def client_options(timeout: float = 60.0) -> Callable[[Function], Callable[..., Any]]:
    """Adds the options of every command of `call`; the command gets them as `server` and `as_json`."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the server's messages as JSON.")
    return lambda command: server_options(timeout)(as_json(command))


def server_options(timeout: float = 60.0) -> Callable[[Function], Callable[..., Any]]:
    """Adds the options to reach a server; the command gets them as `server`."""
    options = (
        click.option("--cert-key", "certificate_key", type=_File, help="Its private key."),
        click.option(
            "--cert", "certificate", type=_File, help="Your client certificate, if the server requires one. PEM."
        ),
        click.option(
            "--ca",
            type=_File,
            envvar="TUNESERVE_CA",
            show_envvar=True,
            help="Use TLS, and trust this authority. PEM.",
        ),
        click.option("--tls", is_flag=True, help="Use TLS, and trust the authorities that this machine trusts."),
        click.option(
            "--key",
            default="",
            envvar="TUNESERVE_KEY",
            show_envvar=True,
            help="Your API key. The variable is safer: other users of the machine can see flags.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(0.001),
            default=timeout,
            show_default=True,
            help="Seconds for the whole call, retries included.",
        ),
        click.option(
            "--target",
            default="localhost:8033",
            show_default=True,
            envvar="TUNESERVE_TARGET",
            show_envvar=True,
            metavar="HOST:PORT",
            help="The server.",
        ),
    )

    def decorate(command: Function) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(
            *arguments: Any,
            target: str,
            timeout: float,
            key: str,
            tls: bool,
            ca: Path | None,
            certificate: Path | None,
            certificate_key: Path | None,
            **values: Any,
        ) -> Any:
            if not key.isascii() or not key.isprintable():
                raise click.UsageError("--key: a key has letters, digits and signs of ASCII only")
            if bool(certificate) != bool(certificate_key):
                raise click.UsageError("--cert and --cert-key belong together: give both")
            from tuneserve.client.endpoint import Endpoint

            server = Endpoint(target, timeout, key, tls, ca, certificate, certificate_key)
            return command(*arguments, server=server, **values)

        return functools.reduce(lambda function, option: option(function), options, run)

    return decorate


def lines_of_stdin() -> list[str]:
    """Returns the lines of standard input that are not blank."""
    return [line for line in stdin_text("TEXT").splitlines() if line.strip()]


def stdin_text(argument: str, strip: bool = True) -> str:
    """Returns standard input, without the white space around it, or only without its last line break.

    Raises UsageError, naming `argument`, if it is a terminal or blank.
    """
    if sys.stdin.isatty():
        raise click.UsageError(f"no {argument} given, and standard input is a terminal")
    text = sys.stdin.read()
    if not text.strip():
        raise click.UsageError(f"no {argument} given, and standard input is empty")
    return text.strip() if strip else text.removesuffix("\n")


def print_json(message: "Message", *more: "Message", indent: int | None = 2) -> None:
    """Prints the fields of messages as one object, with the names of the .proto files; zero values are included."""
    from google.protobuf import json_format

    fields: dict[str, Any] = {}
    for one in (message, *more):
        fields |= json_format.MessageToDict(
            one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    click.echo(json.dumps(fields, ensure_ascii=False, indent=indent))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows as wide as the terminal, or in full width without one. Cells are never read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 1_000_000).print(table)


def truncation(truncate: bool) -> str:
    """The server's name of what --truncate asks for."""
    return "TRUNCATION_END" if truncate else "TRUNCATION_REJECT"


def shown(text: str, truncated: bool) -> str:
    """A text in the form that a table shows."""
    return f"{text} (truncated)" if truncated else text
