import pytest

from tuneserve.server.answer.markers import Marked


def read(text: str, size: int) -> tuple[Marked, str]:
    marked = Marked()
    pieces = [marked.add(text[at : at + size]) for at in range(0, len(text), size)]
    return marked, "".join([*pieces, marked.end()])


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("written", "text", "cited"),
    [
        ("Tenants do [1]. In cash. [2]", "Tenants do. In cash.", [(10, 1), (20, 2)]),
        (" Tenants do. [1][3] It is [2, 4].\n", "Tenants do. It is.", [(11, 1), (11, 3), (17, 2), (17, 4)]),
        ("租客付【1】。", "租客付。", [(3, 1)]),
        ("a[0] and [x] and [1", "a[0] and [x] and [1", []),
        ("[12]", "", [(0, 12)]),
        ("no marker\n\n at all", "no marker\n\n at all", []),
        ("Not foundations.", "Not foundations.", []),
        ("NOT", "NOT", []),
        ("", "", []),
    ],
)
def test_markers_come_apart_from_the_text(written, text, cited, size):
    marked, released = read(written, size)
    assert (released, marked.text, marked.cited) == (text, text, cited)
    assert not marked.is_not_found


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("written", ["NOT_FOUND", "  Not found.", "NOT FOUND [1] because"])
def test_no_answer(written, size):
    marked, released = read(written, size)
    assert (marked.is_not_found, released, marked.text) == (True, "", "")


def test_what_is_certain_is_not_held_back():
    marked = Marked()
    assert marked.add("Tenants do") == "Tenants do"
    assert marked.add(" ") == ""
    assert marked.add("[") == ""
    assert marked.add("see below]") == " [see below]"
    assert marked.add(" " * 1000) == " " * 992
    assert marked.end() == ""
