"""Entities as annotation tools export them: the text of a row, and its spans.

    ours, spaCy     "entities": [{"start", "end", "label"}, ...] or [[start, end, label], ...]
    Prodigy         "spans": [{"start", "end", "label"}, ...], "answer": "accept"
    doccano         "label": [[start, end, label], ...]
    Label Studio    "label": [{"start", "end", "text", "labels": [label]}, ...] in JSON-MIN; in JSON
                    "data": {"text"}, "annotations": [{"result": [{"value": {"start", "end", "text", "labels"}}]}]

Offsets count code points. Label Studio's may count UTF-16 units, as browsers do: the marked `text` shows which.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from tuneserve.checkpoint import entities
from tuneserve.checkpoint.rows import Row

_NAMES = ("entities", "spans", "label", "labels")


def read(raw: Row) -> tuple[str, list[tuple[int, int, Any]]]:
    """Returns the text of a row and (start, end, label) of its entities, in order, without white space at their ends.

    Raises ValueError with the reason if the text is missing, or a span is not within it or overlaps another.
    """
    text, marks = _label_studio(raw) if "annotations" in raw and isinstance(raw.get("data"), dict) else _plain(raw)
    spans = sorted((_span(text, mark) for mark in marks), key=lambda span: span[:2])
    for before, after in pairwise(spans):
        if after[0] < before[1]:
            raise ValueError(f"entities {before[0]} to {before[1]} and {after[0]} to {after[1]} overlap")
    return text, spans


def _plain(raw: Row) -> tuple[str, list[Any]]:
    if raw.get("answer", "accept") != "accept":
        raise ValueError(f"answer is {raw['answer']!r}: export accepted rows only (prodigy db-out --answer accept)")
    name = next((name for name in _NAMES if isinstance(raw.get(name), list)), None)
    # JSON-MIN has no `label` key for a text in which nothing was marked.
    if name is None and "annotation_id" not in raw:
        raise ValueError(f"no tokens and tags, nor text and entities; found {', '.join(raw)} (map with `columns`)")
    return _text(raw.get("text")), raw[name] if name else []


def _label_studio(raw: Row) -> tuple[str, list[Any]]:
    """The task's text and its one annotation, or the one that is marked as the ground truth."""
    data = raw["data"]
    texts = [data["text"]] if "text" in data else [value for value in data.values() if isinstance(value, str)]
    if len(texts) != 1:
        raise ValueError("data has no text")
    done = [one for one in raw["annotations"] if not one.get("was_cancelled")]
    done = [one for one in done if one.get("ground_truth")] or done
    if len(done) != 1:
        raise ValueError(f"{len(done)} annotations: export tasks with one, or with one that is the ground truth")
    marks = [result.get("value", {}) for result in done[0]["result"]]
    # The annotation may also hold results of another type, which are no spans.
    return _text(texts[0]), [mark for mark in marks if "labels" in mark]


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError("text is missing" if text is None else f"text is not text but {type(text).__name__}")
    return text


def _span(text: str, mark: Any) -> tuple[int, int, Any]:
    start, end, label, marked = _parts(mark)
    if type(start) is not int or type(end) is not int:
        raise ValueError(f"entity {start!r} to {end!r}: start and end are not whole numbers")
    if marked is not None:
        start, end = _by_text(text, start, end, marked)
    if not 0 <= start < end <= len(text):
        raise ValueError(f"entity {start} to {end} is empty, or not within the text's {len(text)} characters")
    first, last = entities.trimmed(text, start, end)
    if first == last:
        raise ValueError(f"entity {start} to {end} is only white space")
    return first, last, label


def _parts(mark: Any) -> tuple[Any, Any, Any, str | None]:
    if isinstance(mark, list) and len(mark) == 3:
        return (*mark, None)
    if not isinstance(mark, dict):
        raise ValueError("an entity is not {start, end, label}")
    labels = mark.get("labels", [mark.get("label")])
    if not isinstance(labels, list) or len(labels) != 1:
        raise ValueError(f"entity {mark.get('start')} to {mark.get('end')} has not one label, but {labels!r}")
    marked = mark.get("text")
    return mark.get("start"), mark.get("end"), labels[0], marked if isinstance(marked, str) else None


def _by_text(text: str, start: int, end: int, marked: str) -> tuple[int, int]:
    for first, last in _readings(text, start, end):
        if text[first:last].split() == marked.split():
            return first, last
    raise ValueError(f"entity {start} to {end} is {text[start:end]!r}, its own text is {marked!r}")


def _readings(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    yield start, end
    units = list(accumulate((1 + (ord(character) > 0xFFFF) for character in text), initial=0))
    yield bisect_left(units, start), bisect_left(units, end)
