"""What both clients share."""

import inspect
from typing import Any

import pytest

from tuneserve.client import AsyncClient, Client, generation, texts


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_methods_look_like_their_calls(kind: type[Any]) -> None:
    built = [texts.classify, texts.find_entities, texts.rank, texts.embed]
    built += [generation.generate, generation.chat, generation.stream]
    for call in built:
        method = getattr(kind, call.__name__)
        assert method.__doc__ == call.__doc__
        parameters = list(inspect.signature(method).parameters)
        assert parameters == ["self", *inspect.signature(call).parameters]
        assert inspect.iscoroutinefunction(method) == (kind is AsyncClient and call is not generation.stream)
