"""Feedback by both clients, to the real server on fake engines."""

from typing import Any

import pytest

from tuneserve.client import CallError, InvalidInput


async def test_every_form_is_kept(ask: Any) -> None:
    assert await ask("label_feedback", "sentiment", "r-1", "good", "pos") == 1
    assert await ask("label_feedback", "sentiment", "r-1", "good", ["pos"], text_pair="film") == 1
    assert await ask("label_feedback", "topics", "r-1", "good", []) == 1
    messages = [{"role": "user", "content": "why?"}]
    more = {"tools": [{"type": "function"}], "documents": [{"title": "a"}]}
    assert await ask("answer_feedback", "chat", "r-1", messages, "no", correction="because", good=False, **more) == 3
    assert await ask("answer_feedback", "chat", "r-1", "why?", "because", good=True) == 1
    assert await ask("click_feedback", "vectors", "r-1", "sky", "blue", ignored=["red"]) == 1


async def test_what_makes_no_row_is_refused(ask: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ask("label_feedback", "sentiment", "r 1", "good", "new")
    assert [one.field for one in caught.value.violations] == ["request_id", "label.labels[0]"]


async def test_a_full_server_is_not_asked_again(
    ask: Any, served: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = served.app._feedback._files
    monkeypatch.setattr(files, "_config", files._config.model_copy(update={"max_rows": 0}))
    before = refused(served)
    with pytest.raises(CallError) as caught:
        await ask("label_feedback", "sentiment", "r-1", "good", "pos")
    assert caught.value.reason == "FEEDBACK_FULL"
    # A call is counted after its caller has the answer.
    await until(lambda: refused(served) > before)
    assert refused(served) == before + 1


def refused(served: Any) -> float:
    [metric] = served.app.metrics.handled.collect()
    wanted = {"grpc_method": "Feedback", "grpc_code": "RESOURCE_EXHAUSTED"}
    found = [one for one in metric.samples if one.name.endswith("_total") and wanted.items() <= one.labels.items()]
    return sum(one.value for one in found)
