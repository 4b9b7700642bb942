import pytest

from tuneserve.benchmarks.answers import faqs
from tuneserve.errors import UserError

# Headings that do not ask, and questions without an answer, are left out.
PAGE = """<title>x</title><h1 class="title">4. Chapter</h1><dl><dt>4.1. In the contents?</dt></dl>
<h2 class="title"><a id="a"></a>4.1.\xa0What <em>is</em> it?</h2><p>It is
free &amp; good.</p><h3 class="title">4.1.1. Why?</h3><p>Because.</p><h2 class="title">4.2. About</h2><p>None.</p>
<h2 class="title">4.3. 否？</h2>
<div class="navfooter"><h2 class="title">9. No?</h2>Not this.</div>"""


def test_headings_are_questions_and_what_follows_answers_them():
    assert list(faqs.pairs_of(PAGE)) == [("What is it?", "It is free & good."), ("Why?", "Because.")]


def test_equal_answers_are_one():
    faq = faqs.Faq.of("a", [("one?", "yes"), ("two?", "no"), ("three?", "yes")])
    assert (faq.answers, faq.questions) == (["yes", "no"], [("one?", 0), ("two?", 1), ("three?", 0)])


def test_another_package_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho other > debian-faq_11.1_all.deb\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"debian-faq=11\.1: SHA-256 is not 427426e0"):
        faqs.debian("debian-faq")
    apt.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match=r"debian-faq=11\.1 can't be downloaded"):
        faqs.debian("debian-faq")
    assert list((tmp_path / "cache").iterdir()) == []
