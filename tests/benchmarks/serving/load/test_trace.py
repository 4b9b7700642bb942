"""Traces in both formats, and their replay against a server without a model."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.benchmarks.serving.load import trace
from tuneserve.benchmarks.serving.load.bench import measure
from tuneserve.benchmarks.serving.load.inputs import conversations
from tuneserve.benchmarks.serving.load.settings import Share
from tuneserve.benchmarks.serving.load.trace import Row
from tuneserve.errors import UserError

from ..conftest import Server, settings

MOONCAKE = """\
{"timestamp": 2000, "input_length": 1100, "output_length": 3, "hash_ids": [7, 8, 9]}
{"timestamp": 2250, "input_length": 1030, "output_length": 5, "hash_ids": [7, 8, 11]}
{"timestamp": 2100, "input_length": 6, "output_length": 4}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text(MOONCAKE)
    return file


def test_both_formats_are_read(tmp_path: Path, mooncake: Path) -> None:
    first, second, third = trace.read(mooncake)
    assert first == Row(0.0, 1100, 3, (7, 8, 9))
    assert (second.due, second.input_tokens, second.blocks) == (pytest.approx(0.1), 6, ())
    assert third.due == pytest.approx(0.25)
    file = tmp_path / "azure.csv"
    file.write_text(AZURE)
    first, second = trace.read(file)
    assert first == Row(0.0, 374, 44)
    assert (second.due, second.output_tokens) == (pytest.approx(4.314579), 109)


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", '{"timestamp": 1}\n', "[]\n", '{"timestamp": "x", "input_length"']
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    for name in ("trace.jsonl", "trace.csv"):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=r"no trace|no calls"):
            trace.read(tmp_path / name)


def test_inputs_have_the_lengths_of_the_trace_and_share_its_blocks(mooncake: Path) -> None:
    def made(number: int) -> list[tuple[list[str], int]]:
        chosen = settings("x:1", "chat", trace=mooncake)
        inputs = conversations(chosen, "generate", Share(number=number))
        return [((request := next(inputs)[0]).texts[0].split(), request.max_tokens) for _ in range(3)]

    (first, three), (second, four), (third, five) = made(10**7)
    assert (three, four, five) == (3, 4, 5)
    # And their running numbers.
    assert (len(first), len(second), len(third)) == (1102, 7, 1032)
    shared = 1 + 2 * trace.BLOCK_TOKENS
    assert first[:shared] == third[:shared]
    assert first[shared] != third[shared]
    # Another run shares nothing.
    assert all(words[0] != others[0] for (words, _), (others, _) in zip(made(10**7), made(2 * 10**7), strict=True))


async def test_calls_come_when_those_of_the_trace_did(served: tuple[Server, str], tmp_path: Path) -> None:
    server, target = served
    file = tmp_path / "trace.jsonl"
    times = [0, 0, 10, 300, 310, 320, 600, 2000]
    rows = [{"timestamp": when, "input_length": 5, "output_length": 2 + i} for i, when in enumerate(times)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = await measure(settings(target, "plain", trace=file, self_timed=True, warmup=0.2, seconds=0.3))
    # Those of the warm-up are sent, but do not count; those after the end are not sent.
    assert sorted(request.sampling.max_tokens for request in server.requests) == [2, 3, 4, 5, 6, 7]
    assert result.calls == 3
    assert result.figures["lag_ms_p50"] >= 0
    flat = result.to_json()
    assert (flat["trace"], flat["self_timed"], flat["rate"]) == (str(file), True, None)
    with pytest.raises(UserError, match=r"lasts 2 s, less than --warmup and --seconds, 3\.1 s"):
        await measure(settings(target, "plain", trace=file, self_timed=True, seconds=3.0))


async def test_the_command_replays_a_trace_unless_there_is_a_rate(served: tuple[Server, str], mooncake: Path) -> None:
    arguments = [
        "--target",
        served[1],
        "--model",
        "plain",
        "--trace",
        str(mooncake),
        "--warmup",
        "0",
        "--seconds",
        "0.2",
    ]
    for more, self_timed, rate in (
        ([], True, None),
        (["--rate", "30"], False, 30.0),
        (["--no-self-timed"], False, None),
    ):
        result = await asyncio.to_thread(CliRunner().invoke, bench_command, arguments + more, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        last = json.loads(result.stdout.splitlines()[-1])
        assert (last["self_timed"], last["rate"]) == (self_timed, rate)
    result = CliRunner().invoke(bench_command, [*arguments, "--texts", str(mooncake)])
    assert "--trace and --texts exclude each other" in result.stderr
