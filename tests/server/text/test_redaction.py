"""Personal data out of texts: what is found, what is not, and places in the masked text back to the caller's own."""

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneserve.errors import UserError
from tuneserve.server.text.recognizers import FINDERS
from tuneserve.server.text.redaction import KINDS, Redactor, check

EVERYTHING = Redactor(KINDS)


@pytest.mark.parametrize(
    ("kind", "text", "masked"),
    [
        ("email", "write to anna.schmidt+news@example.co.uk, or call", "write to [EMAIL], or call"),
        ("email", "<a@b.io> \"john.o'neil@uni-x.ac.uk\".", '<[EMAIL]> "[EMAIL]".'),
        ("email", "hans@müller.de und иван@пример.рф", "[EMAIL] und [EMAIL]"),
        ("email", "x@xn--mller-kva.xn--p1ai!", "[EMAIL]!"),
        ("email", "メールはanna@example.comまで。", "メールは[EMAIL]まで。"),
        ("email", "anna@example.com으로, name@例え.jp", "[EMAIL]으로, [EMAIL]"),
        ("email", "a@b.de;c@d.fr|mailto:e@f.com?subject=x", "[EMAIL];[EMAIL]|mailto:[EMAIL]?subject=x"),
        ("phone", "call +49 30 901820 now", "call [PHONE] now"),
        ("phone", "(212) 555-0123, or 212-555-0187 ext. 12.", "[PHONE], or [PHONE]."),
        ("phone", "London 020 7946 0958 / Paris 01 42 68 53 00", "London [PHONE] / Paris [PHONE]"),
        ("phone", "tel:+442079460958 📞+33142685300🙂", "tel:[PHONE] 📞[PHONE]🙂"),
        ("phone", "٠٣٠ ٩٠١٨٢٠ and +٤٩ ٣٠ ٩٠١٨٢٠", "[PHONE] and [PHONE]"),
        ("card", "card 4111 1111 1111 1111 exp 12/29", "card [CARD] exp 12/29"),
        ("card", "order 12 4111-1111-1111-1111 123", "order 12 [CARD] 123"),
        ("card", "5555555555554444,2223003122003222;6011111111111117", "[CARD],[CARD];[CARD]"),
        ("card", "378282246310005 3782 822463 10005 30569309025904", "[CARD] [CARD] [CARD]"),
        ("card", "4111\u00a01111\u00a01111\u00a01111 3530111333300000", "[CARD] [CARD]"),
        ("iban", "IBAN DE89 3704 0044 0532 0130 00 und mehr", "IBAN [IBAN] und mehr"),
        ("iban", "GB82WEST12345698765432. fr76 3000 6000 0112 3456 7890 189", "[IBAN]. [IBAN]"),
        ("iban", "my deposit in DE89370400440532013000 2 days ago", "my deposit in [IBAN] 2 days ago"),
        ("iban", "NL91\u00a0ABNA\u00a00417\u00a01643\u00a000", "[IBAN]"),
        ("ip", "from 192.168.100.200, 10.0.0.0/8.", "from [IP], [IP]."),
        ("ip", "2001:db8::8a2e:370:7334. ::1 fe80::1%eth0", "[IP]. [IP] [IP]"),
        ("ip", "[2001:db8::1]:8080 and 8.8.8.8:53", "[[IP]]:8080 and [IP]:53"),
        ("ip", "::ffff:192.0.2.128 dead:beef::cafe", "[IP] [IP]"),
        ("mac", "00:1A:2B:3C:4D:5E or 0012.3456.789a", "[MAC] or [MAC]"),
        ("url", "see https://example.org/a?b=c#d. (http://x.de/y_(z))", "see [URL]. ([URL])"),
        ("url", "www.example.museum, example.com/users/anna!", "[URL], [URL]!"),
        ("url", "„https://例え.jp/道“、ftp://user:pw@host/x", "„[URL]“、[URL]"),
        ("ssn", "SSN 536-90-4399, ssn: 536904399", "SSN [SSN], ssn: [SSN]"),
        ("ssn", "912-70-1234", "[SSN]"),
        ("national_id", "CPF 390.533.447-05, DNI 12345678Z", "CPF [NATIONAL_ID], DNI [NATIONAL_ID]"),
        ("national_id", "RSSMRA85T10A562S 2 55 08 14 168 025 38", "[NATIONAL_ID] [NATIONAL_ID]"),
        ("national_id", "X1234567L", "[NATIONAL_ID]"),
        ("national_id", "NINO AB 12 34 56 C, PESEL 44051401359", "NINO [NATIONAL_ID], PESEL [NATIONAL_ID]"),
        ("national_id", "880320-0016 131052-308T 2341 2341 2346", "[NATIONAL_ID] [NATIONAL_ID] [NATIONAL_ID]"),
        ("national_id", "nhs 943 476 5870, 7503305044089", "nhs [NATIONAL_ID], [NATIONAL_ID]"),
        ("national_id", "ACUPA7085R 36 574 261 809", "[NATIONAL_ID] [NATIONAL_ID]"),
    ],
)  # fmt: skip
def test_is_masked(kind: str, text: str, masked: str):
    assert Redactor([kind]).mask(text).text == masked


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "a @ b, @anna, x@y, anna@localhost, 5@6.7, me@.com, at example dot org, a@b..de"),
        ("phone", "On 2024-05-03 at 12:30:45 and 03.05.2024 14:30, and 05/03/2024"),
        ("phone", "1,234,567 units for 1.234.567,89 EUR, invoice 2024-000123, pages 12-15, 12345678"),
        ("phone", "ISBN 978-3-16-148410-0, pi 3.14159265358979, 192.168.100.200, 83 200 000 people"),
        ("phone", "550e8400-e29b-41d4-a716-446655440000, 1700000000000, abc2125550123def"),
        ("card", "4111 1111 1111 1112 and 4111111111111112"),  # Luhn fails
        ("card", "0000 0000 0000 0000, 9111111111111111, 1234 5678 9012 3456"),  # no issuer, or Luhn
        ("card", "0.4111111111111111, EAN 4006381333931, 1700000000000, 41111111111111111111"),
        ("card", "4111-1111 1111-1111"),
        ("iban", "DE88 3704 0044 0532 0130 00, DE89 3704 0044 0532 0130, XX89370400440532013000"),
        ("iban", "Room AB12 is on the second floor of building CD34"),
        ("ip", "1.2.3, 256.1.1.1, 1.2.3.4.5, v1.2.3.4, 12:30:45, std::vector, a::b, ::, 16:9, 1:2:3"),
        ("mac", "00:1A:2B:3C:4D, 00:1A-2B:3C:4D:5E, 12:30:45"),
        ("url", "end.Of a sentence, go.to, script.py, and/or, 3.14, e.g. this, http, www, anna@example.org"),
        ("ssn", "000-12-3456, 666-12-3456, 536904399, 078-05-1120, 123-456-7890, 1536-90-4399, 536-90 4399"),
        ("national_id", "390.533.447-06, 12345678A, X1234567A, 44051401358, ZZ 12 34 56 C, 2341 2341 2347"),
        ("national_id", "RSSMRA85T10A562T, ABCDE1234F0, 20240503, 1234567890"),
    ],
)
def test_is_left(kind: str, text: str):
    assert Redactor([kind]).mask(text).text == text


def test_ordinary_text_is_left():
    text = (
        "The 2nd film (1994, 142 min.) was good: 9.3/10 from 2,900,000 votes! It's 50% off until 31.12., "
        "see chapter 3.2.1 of RFC 2616; 你好，世界。 "
        "Größe 1,80 m – naïve café – 🙂 C++ std::map<int>::iterator x; #42 @home"
    )
    assert EVERYTHING.mask(text).text == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # The surest, then the longest of what overlaps gives its name.
        ("https://user:pw@host.com/?mail=a@b.org", "[URL]"),
        ("DE89 3704 0044 0532 0130 00", "[IBAN]"),
        ("4111 1111 1111 1111", "[CARD]"),
        ("anna@example.org", "[EMAIL]"),
        ("943 476 5870", "[NATIONAL_ID]"),
        ("a@b.org, +49 30 901820, 192.168.1.1", "[EMAIL], [PHONE], [IP]"),
    ],
)
def test_overlapping_matches_become_one(text: str, masked: str):
    assert EVERYTHING.mask(text).text == masked


def test_only_the_kinds_that_were_asked_for():
    text = "a@b.org, +49 30 901820"
    assert Redactor(["phone"]).mask(text).text == "a@b.org, [PHONE]"
    assert Redactor(["phone", "email", "email"]).mask(text).text == "[EMAIL], [PHONE]"
    assert Redactor([]).mask(text).text == text


def test_places_map_back():
    text = "née a@b.org or +49 30 901820."
    masked = Redactor(["email", "phone"]).mask(text)
    assert masked.text == "née [EMAIL] or [PHONE]."

    def back(part: str) -> str:
        start = masked.text.index(part)
        return text[slice(*masked.original(start, start + len(part)))]

    assert back("née") == "née"
    assert back("[EMAIL]") == back("MAI") == back("[") == "a@b.org"
    assert back("L] or") == "a@b.org or"
    assert back("or [") == "or +49 30 901820"
    assert back(".") == "."
    assert masked.original(0, 0) == (0, 0)
    assert masked.original(len(masked.text), len(masked.text)) == (len(text), len(text))
    # Between a space and the placeholder: nothing of it.
    assert masked.original(3, 4) == (3, 4)
    assert Redactor(["email"]).mask("a@b.org").original(0, 0) == (0, 0)


PERSONAL = st.sampled_from(
    ["a@b.org", "+49 30 901820", "4111 1111 1111 1111", "DE89370400440532013000", "192.168.1.77"]
)
PLAIN = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Nd", "Cs")), max_size=8).filter(
    lambda text: "@" not in text
)


@settings(deadline=None)
@given(st.lists(st.tuples(PLAIN, PERSONAL), max_size=5), PLAIN)
def test_offsets_map_back_whatever_stands_around(pairs, last):
    text, wanted = "", []
    for plain, personal in pairs:
        # Not signs alone: "#" or "x" behind a number says that the digits behind it are its extension.
        text += f"{plain} and "
        wanted.append((len(text), len(text) + len(personal)))
        text += f"{personal} and "
    text += last
    masked = Redactor(["email", "phone", "card", "iban", "ip"]).mask(text)

    position, cursor = 0, 0  # in the masked text, and in the caller's
    for start, end in wanted:
        size = start - cursor
        assert masked.text[position : position + size] == text[cursor:start]
        for index in range(size):
            assert masked.original(position + index, position + index + 1) == (cursor + index, cursor + index + 1)
        position += size
        close = masked.text.index("]", position) + 1
        for left in range(position, close):
            for right in range(left + 1, close + 1):
                assert masked.original(left, right) == (start, end)
        position, cursor = close, end
    assert masked.text[position:] == text[cursor:]
    assert masked.original(position, len(masked.text)) == (cursor, len(text))


@settings(deadline=None)
@given(st.text("aZ019@.:-+ /(ß例😀\n[]" + "é", max_size=60))
def test_any_text_is_masked_and_mapped_whole(text):
    masked = EVERYTHING.mask(text)
    assert masked.original(0, len(masked.text)) == (0, len(text))
    places = [masked.original(index, index + 1) for index in range(len(masked.text))]
    assert places == sorted(places)
    # Together they cover the caller's text: what was not cut out is there, character by character.
    assert sorted({index for start, end in places for index in range(start, end)}) == list(range(len(text)))
    for index, (start, end) in enumerate(places):
        assert start < end
        if end - start == 1 and masked.text[index] not in "[]":
            assert text[start] == masked.text[index]


def test_nothing_of_a_match_is_left():
    # 300 characters of one before an @ are more than mail allows: what mail allows goes, the address's host too.
    masked = Redactor(["email"]).mask(f"{'secret' * 50}@example.org")
    assert masked.text.endswith("[EMAIL]")
    assert "@" not in masked.text
    # Two kinds that overlap in part: both go, not only the one that wins.
    text = "http://x.de/4111 1111 1111 1111"
    assert Redactor(["url", "card"]).mask(text).text in ("[CARD]", "[URL]")


def test_threads_share_a_redactor():
    text = "a@b.org, +49 30 901820, 4111 1111 1111 1111"
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: EVERYTHING.mask(text).text, range(100))) == {"[EMAIL], [PHONE], [CARD]"}


def test_masks_without_a_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a recognizer opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Redactor(KINDS).mask("a@b.org www.example.org").text == "[EMAIL] [URL]"


def test_kinds_are_checked():
    check(KINDS, "models.chat.redact")
    check([], "models.chat.redact")
    with pytest.raises(UserError, match=r"models\.chat\.redact: 'name' is not allowed") as caught:
        check(["email", "name"], "models.chat.redact")
    assert caught.value.hint
    assert "national_id" in caught.value.hint
    assert tuple(FINDERS) == KINDS


def test_recognizers_are_imported_late():
    code = (
        "import sys; from tuneserve.server.text import redaction; redaction.check(['email'], 'x'); "
        "assert not {'stdnum', 'phonenumbers'} & set(sys.modules); redaction.Redactor(['email']); "
        "assert 'stdnum' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("card ４１１１ １１１１ １１１１ １１１１.", "card [CARD]."),
        ("4111\u200b1111\u00ad1111\u20601111!", "[CARD]!"),
        ("4111\u20111111\u20111111\u20111111", "[CARD]"),
        ("٤١١١ ١١١١ ١١١١ ١١١١", "[CARD]"),
        ("4\ufe0f\u20e3111 1111 1111 1111", "[CARD]"),
        ("ａｎｎａ＠ｅｘａｍｐｌｅ．ｃｏｍ、です", "[EMAIL]、です"),
        ("an\u200bna@exam\u00adple.com", "[EMAIL]"),
        ("+４９ ３０ ９０１８２０", "[PHONE]"),
        ("+49\u200b30\u2011901820", "[PHONE]"),
        ("192\u2024168.100.200", "[IP]"),
        ("ＤＥ８９ ３７０４ ００４４ ０５３２ ０１３０ ００", "[IBAN]"),
        ("见https://a.example/道，然后（再见）", "见[URL]，然后（再见）"),
    ],
)
def test_what_is_written_in_other_signs_is_found_as_it_reads(text: str, masked: str):
    assert EVERYTHING.mask(text).text == masked


def test_places_map_back_where_signs_are_read_as_others():
    text = "née ㎏\u200b4\u200b111 １１１１ 1111 1111\u200b, Ω"
    masked = Redactor(["card"]).mask(text)
    assert masked.text == "née ㎏\u200b[CARD]\u200b, Ω"
    start = masked.text.index("[")
    assert text[slice(*masked.original(start, start + 6))] == "4\u200b111 １１１１ 1111 1111"
    assert text[slice(*masked.original(start + 7, len(masked.text)))] == text[-3:]


@settings(deadline=None)
@given(st.text("aZ01@.:-+（４\u200b\u00ad\u2011٣㎏ﷺé例", max_size=40))
def test_any_signs_are_masked_and_mapped_whole(text):
    masked = EVERYTHING.mask(text)
    assert masked.original(0, len(masked.text)) == (0, len(text))
    places = [masked.original(index, index + 1) for index in range(len(masked.text))]
    assert places == sorted(places)
    assert sorted({index for start, end in places for index in range(start, end)}) == list(range(len(text)))


HOSTILE = {
    "numbers that are none": "1234567 ",
    "numbers of some countries": "(0301) 90 18-20/44 ",
    "cards that are none": "4111 1111 1111 1112 ",
    "phones": "212 555 0123, ",
    "account numbers that are none": "AB12 ",
    "versions": "1.2.3.4.5.6.7.",
    "addresses that end": "a@",
    "brackets": "(1",
    "dates": "12/11/2012 ",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_time_grows_with_the_text_and_no_faster(piece: str):
    """In the thread's own CPU time; what is allowed is twice what a quadratic one would have to keep to."""

    def seconds(size: int) -> float:
        text = (piece * size)[:size]
        started = time.thread_time()
        EVERYTHING.mask(text)
        return time.thread_time() - started

    seconds(100)
    small, large = min(seconds(2_500) for _ in range(3)), seconds(20_000)
    assert large < 0.05 + 24 * small


def test_in_a_text_of_numbers_what_looks_like_one_is_one():
    """None of these is a number of anybody; but to know that of all would take seconds."""
    text = "(0301) 90 18-20/44 " * 1000
    masked = Redactor(["phone"]).mask(text).text
    assert masked.count("[PHONE]") > 100
    started = time.thread_time()
    Redactor(["phone"]).mask(text)
    assert time.thread_time() - started < 2
