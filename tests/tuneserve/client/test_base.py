"""What both clients share."""

import inspect
from typing import Any

import pytest

from tuneserve.client import (
    AsyncClient,
    Client,
    documents,
    feedback,
    generation,
    models,
    monitors,
    texts,
)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_methods_look_like_their_calls(kind: type[Any]) -> None:
    built: list[Any] = [texts.classify, texts.classify_stream, texts.find_entities, texts.rank, texts.embed]
    built += [generation.generate, generation.chat, generation.stream, generation.tokenize, models.watch_model]
    built += [documents.upsert_documents, documents.delete_documents, documents.search, documents.answer]
    built += [models.load_model, models.cancel_load, models.unload_model]
    built += [models.load_adapter, models.unload_adapter]
    built += [models.set_alias, models.delete_alias]
    built += [monitors.observe, monitors.examples]
    built += [feedback.label_feedback, feedback.answer_feedback, feedback.click_feedback]
    several = [texts.classify_stream, documents.answer, generation.stream, models.watch_model, monitors.observe]
    for call in built:
        method = getattr(kind, call.__name__)
        assert method.__doc__ == call.__doc__
        parameters = list(inspect.signature(method).parameters)
        assert parameters == ["self", *inspect.signature(call).parameters]
        assert inspect.iscoroutinefunction(method) == (kind is AsyncClient and call not in several)
