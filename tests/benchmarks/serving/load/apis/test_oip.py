"""The Open Inference Protocol, of the real server with fake engines; test_ours.py makes every kind of its calls."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.benchmarks.serving.load.bench import measure
from tuneserve.call.channel import CallFailed
from tuneserve.errors import StepFailed, UserError

from ...conftest import SECONDS, settings


async def test_whole_answers(real_server: Any, texts: Path) -> None:
    result = await measure(settings(real_server.app.address, "chat", api="oip", stream=False, texts=texts))
    assert result.errors == {}
    assert result.figures["output_tokens_per_s"] * SECONDS == pytest.approx(6 * result.calls, abs=6 * 4)
    assert "ttft_ms_p50" not in result.figures


async def test_errors(real_server: Any, tmp_path: Path) -> None:
    target, long = real_server.app.address, tmp_path / "long.txt"
    long.write_text("good film " * 99)
    for stream in (True, False):
        with pytest.raises(StepFailed, match="is far too long, the model takes 64"):
            await measure(settings(target, "chat", api="oip", stream=stream, texts=long))
    with pytest.raises(CallFailed, match="NOT_FOUND"):
        await measure(settings(target, "nothing", api="oip"))
    with pytest.raises(UserError, match="--batch 9: model sentiment takes at most 8"):
        await measure(settings(target, "sentiment", api="oip", batch=9))
    with pytest.raises(UserError, match="--call rank: --api oip has no such call"):
        await measure(settings(target, "sentiment", api="oip", call="rank"))
