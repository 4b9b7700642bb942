"""Checks the fields of AnswerService's requests, and makes its answers' messages."""

import re
from collections.abc import Sequence

from tuneserve.server.answer.scores import Scored
from tuneserve.server.api.checks import check_count, check_enum, check_text, check_unset
from tuneserve.server.api.classification_messages import UNITS
from tuneserve.server.call.errors import Violations
from tuneserve.server.text.spans import Unit
from tuneserve.v1 import answer_pb2 as pb

# How many a message may have: what is looked up, compared or stored for each of them is bounded by these.
MOST_DOCUMENTS, MOST_PASSAGES = 1024, 100
_MOST_READERS = _MOST_VALUES = 256
_MOST_LIKED = 100
_MOST_KEYS = _MOST_FILTERS = 64
# Characters.
_LONGEST_ID = _LONGEST_TITLE = 512
_LONGEST_TEXT, _LONGEST_REPLY, _LONGEST_QUERY = 1 << 18, 1 << 16, 1 << 13
_LONGEST_NAME = 256
_LONGEST_VALUE = 1024
_LIMIT = 10
_MOST_MESSAGES = 64
ROLES = "user", "assistant"
_GENERATING = "max_tokens", "temperature", "seed"
_MOST_TOKENS = 1 << 14
# Passages to answer from.
_MOST_ANSWERED_FROM, ANSWERED_FROM = 20, 5
_KEY = re.compile(r"[A-Za-z0-9._-]{1,64}")
_A_KEY = "is not a key: 1 to 64 letters, digits, '.', '_' or '-'"


def check_documents(wrong: Violations, documents: Sequence[pb.Document]) -> None:
    """Checks the documents to write."""
    if not check_count(wrong, "documents", len(documents), MOST_DOCUMENTS):
        return
    check_ids(wrong, "documents[{}].id", [one.id for one in documents])
    for index, one in enumerate(documents):
        field = f"documents[{index}]"
        _check_length(wrong, f"{field}.title", one.title, _LONGEST_TITLE)
        check_text(wrong, f"{field}.text", one.text)
        _check_length(wrong, f"{field}.text", one.text, _LONGEST_TEXT)
        if one.HasField("reply"):
            check_text(wrong, f"{field}.reply", one.reply)
            _check_length(wrong, f"{field}.reply", one.reply, _LONGEST_REPLY)
        _check_readers(wrong, f"{field}.readers", one.readers)
        if check_count(wrong, f"{field}.metadata", len(one.metadata), _MOST_KEYS, least=0):
            for key, value in one.metadata.items():
                if not _KEY.fullmatch(key):
                    wrong.add(f"{field}.metadata", f"has a key that {_A_KEY}")
                else:
                    _check_length(wrong, f"{field}.metadata[{key}]", value, _LONGEST_VALUE)


def check_ids(wrong: Violations, field: str, ids: Sequence[str]) -> None:
    """Checks ids; `field` has a {} for the index."""
    first: dict[str, int] = {}
    for index, one in enumerate(ids):
        check_text(wrong, field.format(index), one)
        _check_length(wrong, field.format(index), one, _LONGEST_ID)
        if one in first:
            wrong.add(field.format(index), f"is a duplicate of {field.format(first[one])}")
        first.setdefault(one, index)


def check_search(wrong: Violations, request: pb.SearchRequest, has_ranking: bool) -> None:
    """Checks a query."""
    if request.query:
        check_text(wrong, "query", request.query)
    elif not request.liked:
        wrong.add("query", "is empty; a text is needed, or liked documents")
    _check_length(wrong, "query", request.query, _LONGEST_QUERY)
    _check_profile(wrong, request.liked, request.disliked)
    _check_conditions(wrong, request)
    if not 1 <= limit(request) <= MOST_PASSAGES:
        wrong.add("limit", f"is {request.limit}; allowed: 1 to {MOST_PASSAGES}, or unset for {_LIMIT}")
    if request.rerank and not has_ranking:
        wrong.add("rerank", "is true; this index has no ranking model")
    if request.rerank and not request.query:
        wrong.add("rerank", "is true; there is no query to rank by")


def check_answer(wrong: Violations, request: pb.AnswerRequest, has_generation: bool) -> None:
    """Checks a conversation."""
    if not has_generation:
        check_unset(wrong, request, _GENERATING, "is set; this index has no generation model")
    elif request.HasField("max_tokens") and not 1 <= request.max_tokens <= _MOST_TOKENS:
        wrong.add("max_tokens", f"is {request.max_tokens}; allowed: 1 to {_MOST_TOKENS}")
    if check_count(wrong, "messages", len(request.messages), _MOST_MESSAGES):
        for index, one in enumerate(request.messages):
            if one.role not in ROLES:
                wrong.add(f"messages[{index}].role", f"is none of {', '.join(ROLES)}")
            check_text(wrong, f"messages[{index}].content", one.content)
            _check_length(wrong, f"messages[{index}].content", one.content, _LONGEST_QUERY)
        if request.messages and request.messages[-1].role == "assistant":
            wrong.add(f"messages[{len(request.messages) - 1}].role", "is assistant; the last message is the user's")
    _check_conditions(wrong, request)
    if request.HasField("limit") and not 1 <= request.limit <= _MOST_ANSWERED_FROM:
        told = f"1 to {_MOST_ANSWERED_FROM}, or unset for {ANSWERED_FROM}"
        wrong.add("limit", f"is {request.limit}; allowed: {told}")


def is_ranked(request: pb.SearchRequest) -> bool:
    """Returns whether a call wants the ranking model, which knows nothing of a profile."""
    return request.rerank if request.HasField("rerank") else not (request.liked or request.disliked)


def limit(request: pb.SearchRequest) -> int:
    """Returns how many passages a call wants."""
    return request.limit if request.HasField("limit") else _LIMIT


def passage(scored: Scored, unit: Unit) -> pb.Passage:
    """Returns the message for a passage."""
    row = scored.row
    text = row.passage.removeprefix(f"{row.title}\n") if row.title else row.passage
    start = {"code_point": row.start, "utf8": row.start_utf8, "utf16": row.start_utf16}[unit]
    return pb.Passage(
        document_id=row.document,
        title=row.title,
        text=text,
        start=start,
        end=start + width(text, unit),
        metadata=dict(tag.split("=", 1) for tag in row.tags),
        reply=row.reply,
        score=scored.score,
        dense_score=scored.dense,
        keyword_score=scored.keyword,
        ranking_score=scored.ranking,
    )


def width(text: str, unit: Unit) -> int:
    """Returns the length of a text in a unit."""
    if unit == "code_point":
        return len(text)
    return len(text.encode()) if unit == "utf8" else len(text.encode("utf-16-le")) // 2


def _check_conditions(wrong: Violations, request: pb.SearchRequest | pb.AnswerRequest) -> None:
    _check_readers(wrong, "readers", request.readers)
    if check_count(wrong, "filters", len(request.filters), _MOST_FILTERS, least=0):
        for index, one in enumerate(request.filters):
            if not _KEY.fullmatch(one.key):
                wrong.add(f"filters[{index}].key", _A_KEY)
            check_count(wrong, f"filters[{index}].values", len(one.values), _MOST_VALUES)
    check_enum(wrong, "offset_unit", request.offset_unit, UNITS)


def _check_profile(wrong: Violations, liked: Sequence[str], disliked: Sequence[str]) -> None:
    for field, ids in (("liked", liked), ("disliked", disliked)):
        if not check_count(wrong, field, len(ids), _MOST_LIKED, least=0):
            return
        check_ids(wrong, f"{field}[{{}}]", ids)
    for index, one in enumerate(disliked):
        if one in liked:
            wrong.add(f"disliked[{index}]", "is also among liked")


def _check_readers(wrong: Violations, field: str, readers: Sequence[str]) -> None:
    if check_count(wrong, field, len(readers), _MOST_READERS, least=0):
        for index, one in enumerate(readers):
            check_text(wrong, f"{field}[{index}]", one)
            _check_length(wrong, f"{field}[{index}]", one, _LONGEST_NAME)


def _check_length(wrong: Violations, field: str, text: str, most: int) -> None:
    if len(text) > most:
        wrong.add(field, f"has {len(text)} characters; allowed: {most}")
