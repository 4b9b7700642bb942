"""Every kind of call to the real server, whose engines are fake ones, in our API and in the Open Inference Protocol."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.benchmarks.serving.load.bench import measure

from ...conftest import SECONDS, settings

# The API, the model, the call that is asked for, and what is then reported.
CALLS = [
    ("grpc", "sentiment", None, "sequence-classification", "classify"),
    ("grpc", "sentiment", "rank", "sequence-classification", "rank"),
    ("grpc", "ner", None, "token-classification", "tokens"),
    ("grpc", "vectors", None, "embedding", "embed"),
    ("grpc", "chat", None, "generation", "chat"),
    ("grpc", "chat", "generate", "generation", "generate"),
    ("oip", "sentiment", None, "sequence-classification", "classify"),
    ("oip", "ner", None, "token-classification", "tokens"),
    ("oip", "vectors", None, "embedding", "embed"),
    ("oip", "chat", None, "generation", "generate"),
]


@pytest.mark.parametrize(("api", "model", "call", "task", "made"), CALLS)
async def test_each_kind_of_call(
    real_server: Any, texts: Path, api: str, model: str, call: str | None, task: str, made: str
) -> None:
    generates, engine = task == "generation", real_server.engines[model]
    chosen = settings(real_server.app.address, model, api=api, call=call, batch=1 if generates else 3, texts=texts)
    result = await measure(chosen)
    assert (result.served.task, result.served.call, result.errors) == (task, made, {})
    assert (result.to_json()["api"], result.to_json()["call"]) == (api, made)
    figures = result.figures
    assert figures["input_tokens_per_s"] > 3 * figures["calls_per_s"]
    if generates:
        assert {sampling.max_tokens for sampling in engine.sampled} == {6}
        assert figures["ttft_ms_p50"] > 0
        # Whole answers have 6 tokens; those cut off by either end of the window count with a part.
        assert figures["output_tokens_per_s"] * SECONDS == pytest.approx(6 * result.calls, abs=6 * 4)
    else:
        assert figures["texts_per_s"] == pytest.approx(3 * figures["calls_per_s"], rel=0.01)
        assert len(engine.pooled) >= 3 * result.calls
