"""tuneserve bench: its flags, its table and its line of JSON."""

import asyncio
import json
import re
import sys
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.benchmarks.serving.load.report import page
from tuneserve.machine.tiers import measured_on

from .conftest import Server, on_grpc


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--goodput", "e2e:5"], "--goodput 'e2e:5' is not e2el, ttft or tpot, a colon and milliseconds"),
        (["--goodput", "ttft"], "--goodput 'ttft' is not"),
        (["--goodput", "ttft:-1"], "--goodput 'ttft:-1' is not"),
        (["--max-rate"], "--max-rate needs --goodput"),
        (["--max-rate", "--rate", "5", "--goodput", "ttft:5"], "--max-rate and --rate exclude each other"),
        (["--rate", "0"], "--rate"),
        (["--burstiness", "0.5"], "--burstiness needs --rate or --max-rate"),
    ],
)
def test_wrong_goals_and_rates_are_named(wrong: list[str], message: str) -> None:
    result = CliRunner().invoke(bench_command, ["--model", "m", *wrong])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("wrong", ["0", "1,x", "5000", ","])
def test_wrong_lists_are_named(wrong: str) -> None:
    result = CliRunner().invoke(bench_command, ["--model", "m", "--connections", wrong])
    assert result.exit_code == 2
    assert "--connections" in result.stderr


def test_what_is_not_installed_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, page.__name__)
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    result = CliRunner().invoke(bench_command, ["--model", "m", "--target", "127.0.0.1:1", "--html", "page.html"])
    assert "--html needs matplotlib.ticker" in str(result.exception)


async def test_the_command_finds_the_highest_rate(served: tuple[Server, str]) -> None:
    arguments = ["--target", served[1], "--model", "sentiment", "--connections", "1", "--seconds", "0.2"]
    arguments += ["--warmup", "0", "--max-rate", "--goodput", "e2el:60000"]
    result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["max_rate"] == max((one["rate"] for one in found["results"] if not one["invalid"]), default=0)
    assert found["invalid"] == any(one["invalid"] for one in found["results"])
    told = "highest rate with 99 of 100 calls good" if found["max_rate"] else "no rate was good"
    assert told in result.stdout
    assert ("; invalid: the client was the limit" in result.stdout) == found["invalid"]


async def test_command_prints_a_table_and_json_as_the_last_line(
    served: tuple[Server, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server, target = served
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("only this\n\n and  that \n")
    arguments = ["--target", target, "--model", "sentiment", "--connections", "2", "--seconds", "0.3"]
    arguments += ["--warmup", "0", "--batch", "2", "--texts", str(texts)]
    # The command runs its own event loop, so it needs a thread: this one serves.
    result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["target"] == target
    assert (last["model"], last["task"], last["version"]) == ("sentiment", "sequence-classification", "0123456789ab")
    assert (last["connections"], last["batch"], last["seconds"]) == (2, 2, 0.3)
    assert last["texts_per_s"] > 0
    assert last["errors"] == {}
    assert last["texts"] == str(texts)
    assert "texts/s" in result.stdout
    sent = [entry.text for request in server.requests for entry in request.inputs]
    assert {text.partition(" ")[2] for text in sent} == {"only this", "and  that"}
    assert len(set(sent)) == len(sent)
    assert last["client_tier"] == measured_on()


async def test_a_server_with_keys_and_tls(certified: tuple[Path, Path]) -> None:
    key, certificate = certified
    servicer = Server()
    servicer.key = "secret-of-mine"
    server = on_grpc(servicer)
    pair = [(key.read_bytes(), certificate.read_bytes())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, certificate.read_bytes(), True))
    await server.start()
    tls = ["--ca", str(certificate), "--cert", str(certificate), "--cert-key", str(key)]
    plain = ["--target", f"127.0.0.1:{port}", "--seconds", "1", "--warmup", "0", "--connections", "2"]
    try:
        for model, calls in (("sentiment", []), ("ner", []), ("chat", []), ("chat", ["--unary"])):
            arguments = [*plain, "--model", model, *tls, "--key", servicer.key, *calls]
            result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments)
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout.splitlines()[-1])["tls"] is True
            assert servicer.key not in result.output
        for wrong, message in (([*tls, "--key", "x"], "who are you"), ([], "no server answers"), (tls, "who are you")):
            arguments = [*plain, "--model", "sentiment", *wrong]
            result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments)
            assert result.exit_code in (1, 2)
            assert message in result.stderr
    finally:
        await server.stop(None)


def test_help_lists_each_option_once() -> None:
    shown = CliRunner().invoke(bench_command, ["--help"]).stdout.partition("\nLoad:")[2]
    for parameter in bench_command.params:
        assert len(re.findall(rf"^  {parameter.opts[0]}[ ,]", shown, re.MULTILINE)) == 1, parameter.name
