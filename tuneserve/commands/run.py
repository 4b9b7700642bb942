"""Run a server, and make its keys."""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from tuneserve.commands.options import FilePath
from tuneserve.errors import UserError
from tuneserve.machine import lifetime
from tuneserve.machine.runtime import preload


@click.command()
@click.option(
    "--model", "models", multiple=True, metavar="NAME=PATH", help="Serve the checkpoint PATH as NAME. Repeat for more."
)
@click.option("--config", type=FilePath, help="A YAML file of settings in place of --model (docs/settings.md).")
@click.option("--listen", metavar="HOST:PORT", help="Address for gRPC.  [default: 127.0.0.1:8033]")
@click.option(
    "--metrics-listen", metavar="HOST:PORT", help="Address for /metrics over HTTP.  [default: 127.0.0.1:9033]"
)
@click.option("--drain-seconds", type=float, help="Time for running calls after SIGTERM.  [default: 30]")
@click.option("--processes", type=int, help="Complete servers behind one port, each with its engines.  [default: 1]")
@click.option("--ready-file", type=FilePath, help="Write the addresses here, as JSON, once every model answers.")
@click.option(
    "--end-with-input",
    is_flag=True,
    help="Kill the server when the pipe at standard input is closed, or its writer ends.",
)
# For the processes that `--processes` starts: the folder that they share.
@click.option("--shared", type=click.Path(file_okay=False, path_type=Path), hidden=True)
def serve(
    models: tuple[str, ...],
    config: Path | None,
    ready_file: Path | None,
    end_with_input: bool,
    shared: Path | None,
    **flags: Any,
) -> None:
    """Serve checkpoints over gRPC, each with its own vLLM engine.

    \b
    tuneserve serve --model sentiment=./sentiment --model chat=./chat
    tuneserve serve --config server.yaml

    Health is SERVING once a real request went through every model. SIGTERM drains: new calls are refused, running ones
    finish, exit status 0.
    """
    from tuneserve import settings
    from tuneserve.server import config as server_config

    if end_with_input:
        lifetime.end_with(sys.stdin.fileno())
    if bool(models) == bool(config):
        raise UserError("give either --model NAME=PATH, once or more, or --config FILE")
    given = {key: value for key, value in flags.items() if value is not None}
    file = server_config.ConfigFile(config, given) if config else None
    if file:
        chosen = file.load()
    else:
        given["models"] = server_config.parse_models(models)
        chosen = server_config.checked(settings.build(server_config.ServerConfig, given))
    if chosen.processes > 1 and not shared:
        from tuneserve.server.processes.parent import serve as run_all

        run_all(chosen, ready_file)
        return
    preload()
    # NumPy starts no threads with it: the process is copied, see fork_server.py.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tuneserve.server.app import serve as run
    from tuneserve.server.call import request_log

    request_log.to_stderr()
    run(chosen, ready_file, file, shared)


@click.command()
@click.option(
    "--config", type=FilePath, required=True, help="The server's file, of one model with engine: {nnodes: N}."
)
@click.option("--leader", metavar="HOST", required=True, help="The first machine, where the server runs.")
@click.option("--rank", type=click.IntRange(1), required=True, help="Which machine this is; the first one is 0.")
def worker(config: Path, leader: str, rank: int) -> None:
    """Compute a part of a model that spans several machines, beside its server on the first one.

    \b
    tuneserve serve --config server.yaml                              # on the first machine
    tuneserve worker --config server.yaml --leader 10.0.0.1 --rank 1    # on the second one

    It answers no calls, and ends when a process of its part does.
    """
    preload()
    from tuneserve.server.worker import work

    work(config, leader, rank)


@click.command()
@click.option("--days", type=click.IntRange(1), help="The key expires after so many days, at midnight UTC.")
def key(days: int | None) -> None:
    """Generate a random API key, and its hash for the server's tenants file.

    The file holds only the hash, under the tenant's `keys`. The key itself is shown once, here, and stored nowhere.
    To hash a key that you already have, put `sha256:` before the output of `printf %s KEY | sha256sum`; only long
    random keys are safe in this form.
    """
    from tuneserve.server.call.tenants import hashed, new_key

    made = new_key()
    click.echo(f"key   {made}")
    expires = f" expires {datetime.now(UTC).date() + timedelta(days + 1)}" if days else ""
    click.echo(f"hash  {hashed(made)}{expires}")
