import numpy as np
import pytest

from tuneserve.server.text import spans
from tuneserve.server.text.spans import Span

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def find(rows, offsets, words, aggregation="simple", text="x" * 99):
    return ended(spans.find(text, np.asarray(rows, dtype=np.float32), offsets, words, LABELS, aggregation))


def ended(work):
    """What a generator returns after its steps."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def one_hot(*labels: str) -> np.ndarray:
    return np.eye(len(LABELS))[[LABELS.index(label) for label in labels]]


def test_adjacent_tokens_of_one_entity_are_joined():
    found = find(
        one_hot("O", "B-PER", "I-PER", "O", "B-LOC", "O"),
        [(0, 0), (0, 6), (7, 13), (14, 16), (17, 24), (0, 0)],
        [None, 0, 1, 2, 3, None],
    )
    assert found == [Span("PER", 1.0, 0, 13), Span("LOC", 1.0, 17, 24)]


def test_a_second_b_begins_a_new_span():
    found = find(one_hot("B-LOC", "B-LOC", "I-LOC"), [(0, 5), (6, 9), (10, 12)], [0, 1, 2])
    assert [(span.start, span.end) for span in found] == [(0, 5), (6, 12)]


def test_special_tokens_never_become_spans():
    assert find(one_hot("B-PER", "O", "B-PER"), [(0, 0), (0, 3), (0, 0)], [None, 0, None]) == []


def test_spans_have_no_white_space_at_their_ends():
    """Many tokenizers of bytes count the space before a word to its token."""
    text = "in New York, ok"
    found = find(
        one_hot("O", "B-LOC", "I-LOC", "O", "B-PER"),
        [(0, 2), (2, 6), (6, 11), (11, 12), (12, 13)],
        range(5),
        text=text,
    )
    # And what is white space alone is nothing.
    assert found == [Span("LOC", 1.0, 3, 11)]


def test_tokens_without_text_are_no_part_of_a_span():
    found = find(one_hot("B-LOC", "O", "I-LOC"), [(0, 3), (3, 3), (4, 8)], [0, 1, 2], text="New York")
    assert found == [Span("LOC", 1.0, 0, 8)]


# One word of two tokens that disagree: the first says LOC with 0.5, the second PER with 0.9.
WORD = [[0.1, 0.1, 0.1, 0.5, 0.2], [0.05, 0.9, 0.0, 0.05, 0.0]]


@pytest.mark.parametrize(
    ("aggregation", "label", "score"), [("first", "LOC", 0.5), ("max", "PER", 0.9), ("average", "PER", 0.5)]
)
def test_aggregation_decides_for_the_whole_word(aggregation, label, score):
    [found] = find(WORD, [(0, 4), (4, 8)], [0, 0], aggregation)
    assert (found.label, found.start, found.end) == (label, 0, 8)
    assert found.score == pytest.approx(score)


def test_simple_keeps_tokens_apart():
    assert [(span.label, span.start, span.end) for span in find(WORD, [(0, 4), (4, 8)], [0, 0])] == [
        ("LOC", 0, 4),
        ("PER", 4, 8),
    ]


def test_offsets_in_other_units():
    text = "🙂é東a"
    assert list(spans.positions(text, "code_point")) == [0, 1, 2, 3, 4]
    assert list(spans.positions(text, "utf8")) == [0, 4, 6, 9, 10]
    assert list(spans.positions(text, "utf16")) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("step", [1, 2, 7])
def test_steps_change_nothing(aggregation, step, monkeypatch):
    """Words and entities go on from one step to the next."""
    chance = np.random.default_rng(step)
    text = "".join(chance.choice(list("ab é東-"), 300))
    ends = np.unique(chance.integers(1, 300, 150)).tolist()
    offsets = [(0, 0), *zip([0, *ends[:-1]], ends, strict=True), (0, 0)]
    words = [None, *range(len(ends)), None]
    rows = chance.random((len(offsets), len(LABELS)))
    whole = find(rows, offsets, words, aggregation, text)
    assert len(whole) > 20
    monkeypatch.setattr(spans, "STEP", step)
    assert find(rows, offsets, words, aggregation, text) == whole
