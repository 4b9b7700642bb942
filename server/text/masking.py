"""Masks personal data in a checked request, before a model sees any of it.

Every text in a request is masked, wherever it is; so are new fields, unless they are named here. Keys of JSON objects
count as texts. Texts that the model must or must not write can't be masked: personal data in them is refused.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.concurrency import pieces
from tuneserve.server.text.redaction import LONGEST, Masked, Redactor

# Characters that a thread masks at a time.
_PIECE = 1 << 14
# Fields with names of the server's own objects, not the caller's texts.
_NAMES = {
    *("ClassifyRequest.model", "ClassifyTokensRequest.model", "RankRequest.model", "EmbedRequest.model"),
    *("GenerateRequest.model", "TokenizeRequest.model", "EmbedRequest.prompt_name"),
    *("ObserveStreamRequest.monitor", "FeedbackRequest.request_id", "FeedbackRequest.model", "LabelFeedback.labels"),
    *("GenerateRequest.adapter", "RankRequest.label", "ClassifyRequest.thresholds"),
}
_REFUSED = {
    *("ClassifyRequest.labels", "ClassifyExample.label", "SamplingParams.stop", "SamplingParams.bad_words"),
    *("Choice.options", "StructuredOutput.json_schema", "StructuredOutput.regex", "StructuredOutput.grammar"),
}
_PACKAGE = "tuneserve.v1."
# Identifiers of a schema: URLs that the model never writes.
_ADDRESSES = re.compile(r'"\$(?:schema|id|ref)": "[^"]*"')

M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True)
class Redacted(Generic[M]):
    """A request with its personal data masked."""

    request: M
    masks: Mapping[str, Masked] = field(default_factory=dict)  # by field, for texts that were changed

    def original(self, path: str, text: str) -> Masked:
        """Returns a text of the request with its mapping to the caller's text."""
        return self.masks.get(path) or Masked(text)


@dataclass(frozen=True)
class _Text:
    """A text in a request."""

    path: str  # its field, or the field of the JSON object that it is in
    text: str
    is_refused: bool
    replace: Callable[[str], None]


async def redacted(redactor: Redactor, request: M, path: str, apart: Callable[..., Awaitable[Any]]) -> Redacted[M]:
    """Returns a request, or the field at that path, with personal data masked. Raises InvalidInput naming the fields.

    `apart` runs a function in a thread. It is given a piece of the work at a time, so that the work ends with the call.
    """
    copy = type(request)()
    copy.CopyFrom(request)
    texts: list[_Text] = await apart(list, _texts(copy, path))
    with Violations() as wrong:
        for one in texts:
            if len(one.text) > LONGEST:
                what = f"has {len(one.text)} characters; a model that masks personal data takes {LONGEST} in one text"
                wrong.add(one.path, what)
    known: dict[str, Masked] = {}
    for piece in pieces(texts, lambda one: len(one.text), _PIECE):
        await apart(_mask, redactor, piece, known)
    with Violations() as wrong:
        for one in texts:
            if one.is_refused and known[one.text].found:
                wrong.add(one.path, "contains personal data, which this model masks in texts; leave it out")
    found = [one for one in texts if known[one.text].found]
    # The contents of an object first, then its keys.
    await apart(_replace, reversed(found), known)
    return Redacted(copy, {one.path: known[one.text] for one in found})


def _texts(message: Message, path: str) -> Iterator[_Text]:
    """Yields the texts of a message, outer ones first. Texts inside a JSON object have the object's path."""
    for descriptor, value in message.ListFields():
        name = descriptor.full_name.removeprefix(_PACKAGE)
        if name in _NAMES:
            continue
        is_ours = descriptor.full_name.startswith(_PACKAGE)
        where = ".".join(filter(None, (path, descriptor.name))) if is_ours else path
        if _is_map(descriptor):
            yield from _entries(value, where)
        elif descriptor.is_repeated:
            for index, one in enumerate(value):
                inner = f"{where}[{index}]" if is_ours else where
                yield from _one(descriptor, one, inner, partial(value.__setitem__, index))
        else:
            yield from _one(descriptor, value, where, partial(setattr, message, descriptor.name))


def _one(descriptor: FieldDescriptor, value: Any, path: str, replace: Callable[[str], None]) -> Iterator[_Text]:
    if descriptor.message_type:
        yield from _texts(value, path)
    elif descriptor.type == FieldDescriptor.TYPE_STRING:
        yield _Text(path, value, descriptor.full_name.removeprefix(_PACKAGE) in _REFUSED, replace)


def _entries(entries: Any, path: str) -> Iterator[_Text]:
    for key in list(entries):
        if isinstance(key, str):
            yield _Text(path, key, False, partial(_rename, entries, key, path))
        if isinstance(entries[key], Message):
            yield from _texts(entries[key], path)


def _rename(entries: Any, key: str, path: str, new: str) -> None:
    if new in entries:
        raise InvalidInput(path, "holds two keys that become equal once personal data in them is masked")
    entries[new].CopyFrom(entries[key])
    del entries[key]


def _is_map(descriptor: FieldDescriptor) -> bool:
    return bool(descriptor.message_type and descriptor.message_type.GetOptions().map_entry)


def _mask(redactor: Redactor, texts: Sequence[_Text], known: dict[str, Masked]) -> None:
    for one in texts:
        if one.text not in known:
            known[one.text] = redactor.mask(_read(one) if one.is_refused else one.text)


def _read(one: _Text) -> str:
    """Returns the content of a constraint without its notation."""
    if one.path.endswith(".json_schema"):
        try:
            return _ADDRESSES.sub("", json.dumps(json.loads(one.text), ensure_ascii=False))
        except (ValueError, RecursionError):
            return one.text
    return one.text.replace("\\", "")


def _replace(texts: Iterator[_Text], known: Mapping[str, Masked]) -> None:
    for one in texts:
        one.replace(known[one.text].text)
