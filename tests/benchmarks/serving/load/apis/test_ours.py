"""Every kind of call to the real server, whose engines are fake ones."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.benchmarks.serving.load.bench import measure

from ...conftest import settings

# The model, the call that is asked for, and what is then reported.
CALLS = [
    ("sentiment", None, "sequence-classification", "classify"),
    ("sentiment", "rank", "sequence-classification", "rank"),
    ("ner", None, "token-classification", "tokens"),
    ("vectors", None, "embedding", "embed"),
    ("chat", None, "generation", "chat"),
    ("chat", "generate", "generation", "generate"),
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Short ones: the models take few tokens."""
    file = tmp_path / "texts.txt"
    file.write_text("good film\nbad movie\n")
    return file


@pytest.mark.parametrize(("model", "call", "task", "made"), CALLS)
async def test_each_kind_of_call(
    real_server: Any, texts: Path, model: str, call: str | None, task: str, made: str
) -> None:
    generates, engine = task == "generation", real_server.engines[model]
    chosen = settings(real_server.app.address, model, call=call, batch=1 if generates else 3, texts=texts)
    result = await measure(chosen)
    assert (result.served.task, result.served.call, result.errors) == (task, made, {})
    assert result.to_json()["call"] == made
    figures = result.figures
    assert figures["input_tokens_per_s"] > 3 * figures["calls_per_s"]
    if generates:
        assert {sampling.max_tokens for sampling in engine.sampled} == {6}
        assert figures["ttft_ms_p50"] > 0
    else:
        assert figures["texts_per_s"] == pytest.approx(3 * figures["calls_per_s"], rel=0.01)
        assert len(engine.pooled) >= 3 * result.calls
