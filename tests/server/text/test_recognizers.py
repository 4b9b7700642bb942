"""What is found of each kind of personal data, what is left, and that no text takes long."""

import socket
import time

import pytest

from tuneserve.server.text.redaction import KINDS, Redactor

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


def test_masks_without_a_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a recognizer opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Redactor(KINDS).mask("a@b.org www.example.org").text == "[EMAIL] [URL]"


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
