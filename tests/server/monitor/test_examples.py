"""What is kept of observed texts: the last ones of each cell, by tenant, within a bound."""

from tuneserve.server.monitor.examples import LONGEST, Example, Examples

CELL, OTHER = ("news", "sports", "neg"), ("news", "sports", "pos")


def texts(examples: Examples, tenant: str, cell: tuple[str, str, str]) -> list[str]:
    return [one.text for one in examples.last(tenant, cell)]


def test_the_last_texts_of_a_cell_newest_first():
    examples = Examples()
    for text in "abcd":
        examples.add("one", CELL, text, 3)
    examples.add("one", OTHER, "e", 3)
    assert texts(examples, "one", CELL) == ["d", "c", "b"]
    assert texts(examples, "one", OTHER) == ["e"]
    times = [one.time_ns for one in examples.last("one", CELL)]
    assert times == sorted(times, reverse=True)


def test_a_tenant_has_its_own():
    examples = Examples()
    examples.add("one", CELL, "a", 3)
    examples.add("two", CELL, "b", 3)
    assert texts(examples, "one", CELL) == ["a"]
    assert texts(examples, "two", CELL) == ["b"]
    assert texts(examples, "three", CELL) == []


def test_a_long_text_is_cut():
    examples = Examples()
    examples.add("one", CELL, "ä" * (LONGEST + 1), 3)
    assert texts(examples, "one", CELL) == ["ä" * LONGEST]


def test_all_together_are_bounded_and_the_largest_tenant_loses_its_oldest_cell():
    size = Example("a" * LONGEST, 0).size
    examples = Examples(most_bytes=4 * size)
    examples.add("small", CELL, "s" * LONGEST, 9)
    for text in "abc":
        examples.add("large", CELL, text * LONGEST, 9)
    examples.add("large", OTHER, "d" * LONGEST, 9)
    assert texts(examples, "small", CELL) == ["s" * LONGEST]
    assert texts(examples, "large", CELL) == ["c" * LONGEST, "b" * LONGEST]
    for text in "efgh":
        examples.add("large", OTHER, text * LONGEST, 9)
    assert texts(examples, "large", CELL) == []
    assert texts(examples, "large", OTHER) == [text * LONGEST for text in "hgf"]
    # What was dropped frees its bytes: there is room for as many again.
    assert texts(examples, "small", CELL) == ["s" * LONGEST]
