"""Batches are made, asked for, and asked for again without what was refused. The server here is a function."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from tuneserve.client import errors
from tuneserve.errors import StepFailed
from tuneserve.predict import asking
from tuneserve.predict.asking import Asking
from tuneserve.predict.tasks import Task


def read(row: dict[str, Any]) -> str:
    if "text" not in row:
        raise ValueError("text: is missing")
    return row["text"]


def answers(ask, *windows: Sequence[Any], batch: int = 4, calls: int = 2) -> dict[int, list[dict[str, Any]]]:
    """What is written for each window of texts, of rows, or of reasons why there is none."""
    found: dict[int, list[dict[str, Any]]] = {}
    rows: list[int] = []

    async def asked(client, model, inputs):
        return [{"predicted_label": label} for label in await ask(inputs)]

    def raw(at: int, value: Any) -> tuple[str, Any]:
        return f"rows:{at}", {"text": value[1:]} if isinstance(value, str) and value.startswith("=") else value

    given = ((number, [raw(at, value) for at, value in enumerate(window)]) for number, window in enumerate(windows))
    these = Asking(
        None,
        "m",
        Task(read, asked, batch, calls),
        {},
        lambda number, lines: found.update({number: list(lines)}),
        rows.append,
    )
    asyncio.run(asyncio.wait_for(these.answer(given), 20))
    assert sum(rows) == sum(map(len, windows))
    return found


def refused(*fields: str) -> errors.InvalidInput:
    violations = [errors.FieldViolation(field, "is bad") for field in fields]
    return errors.InvalidInput("bad", grpc.StatusCode.INVALID_ARGUMENT, violations=violations)


def test_texts_of_about_the_same_length_go_together_and_come_back_in_order():
    calls = []

    async def ask(inputs):
        calls.append(list(inputs))
        return [one.upper() for one in inputs]

    found = answers(ask, ["=a", "=bbb", "=cc", "=dddd", "=e"], ["=f"], batch=2, calls=1)
    assert calls == [["dddd", "bbb"], ["cc", "a"], ["e"], ["f"]]
    assert [row["predicted_label"] for row in found[0]] == ["A", "BBB", "CC", "DDDD", "E"]
    assert found[1] == [{"text": "f", "predicted_label": "F"}]


def test_a_call_has_so_many_bytes(monkeypatch):
    monkeypatch.setattr(asking, "_CALL_BYTES", 10)
    monkeypatch.setattr(asking, "_MOST_BYTES", 20)
    calls = []

    async def ask(inputs):
        calls.append(list(map(len, inputs)))
        return inputs

    found = answers(ask, ["=" + "a" * size for size in (21, 12, 6, 4, 3)], calls=1)
    assert calls == [[12], [6, 4], [3]]
    assert found[0][0]["predicted_error"] == "rows:0: has 21 bytes; allowed: 20"


def test_bad_rows_have_the_reason_and_others_their_answers():
    async def ask(inputs):
        if bad := [f"inputs[{place}].text" for place, one in enumerate(inputs) if "x" in one]:
            raise refused(*bad)
        return inputs

    found = answers(ask, ["=a", "not JSON", "=xb", {"id": 3}, "=c", "=xd"])[0]
    assert [row.get("predicted_label") for row in found] == ["a", None, None, None, "c", None]
    assert [row.get("predicted_error") for row in found] == [
        *(None, "rows:1: not JSON", "text is bad", "rows:3: text: is missing", None, "text is bad")
    ]
    assert found[3]["id"] == 3, "the row itself is kept"


def test_where_the_server_does_not_say_which_each_is_asked_alone():
    async def ask(inputs):
        if "x" in inputs:
            raise refused()
        return inputs

    found = answers(ask, ["=a", "=x", "=b"])[0]
    assert [row.get("predicted_error") for row in found] == [None, "bad", None]


def test_windows_are_written_one_after_another():
    writing: list[int] = []
    overlapped: list[int] = []

    def write(number: int, lines: Any) -> None:
        writing.append(number)
        time.sleep(0.02)
        if len(writing) > 1:
            overlapped.append(number)
        writing.remove(number)

    async def ask(client, model, inputs):
        return [{} for _ in inputs]

    given = ((number, [("rows", {"text": "a"})]) for number in range(8))
    asyncio.run(Asking(None, "m", Task(read, ask, 1, 4), {}, write).answer(given))
    assert not overlapped


def test_a_window_without_a_good_row_is_written_too():
    async def ask(inputs):
        raise AssertionError

    assert answers(ask, ["no", "no"], [{"id": 1}]) == {
        0: [{"predicted_error": "rows:0: no"}, {"predicted_error": "rows:1: no"}],
        1: [{"id": 1, "predicted_error": "rows:0: text: is missing"}],
    }


def test_an_engine_that_restarts_is_asked_again(monkeypatch):
    monkeypatch.setattr(asking, "_PAUSE_SECONDS", 0.01)
    left = [errors.Unavailable("restarting", grpc.StatusCode.UNAVAILABLE)] * 2

    async def ask(inputs):
        if left:
            raise left.pop()
        return inputs

    assert answers(ask, ["=a"])[0][0]["predicted_label"] == "a"


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.CallError])
def test_a_server_that_can_t_answer_ends_it_all(kind, monkeypatch):
    monkeypatch.setattr(asking, "_PAUSE_SECONDS", 0.01)

    async def ask(inputs):
        raise kind("no engine", grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(StepFailed, match="the server answered UNAVAILABLE: no engine"):
        answers(ask, *[["=a"] * 64] * 20)
