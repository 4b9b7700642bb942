"""`tuneserve call observe` and `examples`: what is sent and what is printed."""

import json
import subprocess
import sys

from .conftest import Server, call, cells


def test_each_text_is_printed_with_what_was_found(server: Server, target: str) -> None:
    result = call(target, "observe", "--monitor", "news", "--truncate", "a film", "nothing")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "arts 0.75, trade 0.50\tneg 0.90\ta film\n-\tneg 0.90\tnothing\n"
    sent = server.observed[-1]
    assert (sent.id, sent.monitor, sent.text, sent.truncation) == (2, "news", "nothing", 2)


def test_lines_are_read_and_those_that_fail_are_told(server: Server, target: str) -> None:
    result = call(target, "observe", "--monitor", "news", stdin="a film\n\n  bad \nanother\n")
    assert result.exit_code == 1
    assert [line.split("\t")[-1] for line in result.stdout.splitlines()] == ["a film", "another"]
    assert "error: text 3: is too long" in result.stderr
    assert "texts that were not counted: 1" in result.stderr
    assert [one.id for one in server.observed[-3:]] == [1, 3, 4]


def test_json_is_one_object_a_line(target: str) -> None:
    result = call(target, "observe", "--monitor", "news", "--json", "a film", "nothing")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["id"] for one in found] == ["1", "2"]
    assert found[0]["observation"]["sentiment"]["label"] == "neg"


def test_an_unknown_monitor_is_a_refusal(target: str) -> None:
    result = call(target, "examples", "--monitor", "other", "--topic", "arts", "--sentiment", "neg")
    assert result.exit_code == 2
    assert "NOT_FOUND" in result.stderr


def test_an_unknown_monitor_ends_a_stream_that_goes_on(target: str) -> None:
    command = [sys.executable, "-P", "-m", "tuneserve.cli", "call", "observe", "--monitor", "other", "--target", target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"a film\nanother\n")
        process.stdin.flush()
        assert process.wait(60) == 2
        assert process.stderr.read() == b"error: monitor 'other' is not served here\n"


def test_examples(server: Server, target: str) -> None:
    options = ("--monitor", "news", "--topic", "arts", "--sentiment", "neg")
    assert cells(call(target, "examples", *options)) == [["2026-01-02T03:04:05Z", "a", "[bold]film"]]
    assert (server.request.topic, server.request.sentiment) == ("arts", "neg")
    assert json.loads(call(target, "examples", *options, "--json").stdout)["examples"][0]["text"] == "a [bold]film"
