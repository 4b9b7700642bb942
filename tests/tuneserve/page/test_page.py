"""A page of HTML: no text in it is markup."""

from tuneserve.page import Section, render

EVIL = "<script>alert(1)</script>"


def test_texts_are_escaped() -> None:
    section = Section(EVIL, note=EVIL, columns=[EVIL, "n"], rows=[[EVIL, 1]], numbers=[1])
    page = render(EVIL, EVIL, [(EVIL, EVIL)], [section])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 9, "the title is in two places"


def test_a_section_without_rows_has_no_table() -> None:
    assert "<table>" not in render("t", "s", [], [Section("empty", columns=["a"])])
    full = Section("full", columns=["a"], rows=[[1]], numbers=[0])
    assert '<td class="number">1</td>' in render("t", "s", [], [full])
