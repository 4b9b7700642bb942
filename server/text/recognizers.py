"""Finds personal data of each kind in a text. Numbers are validated by their issuers' rules, with python-stdnum and
phonenumbers (Google's libphonenumber); data without check digits is recognized by its shape.

In doubt it finds too much rather than too little. Every pattern takes time linear in the text, for any text, because
callers choose it. Knows nothing of masking, and makes no network calls. Slow to import, so only `redaction.py` imports
it, when a model asks for it.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import phonenumbers
from stdnum import iban, luhn
from stdnum.br import cpf
from stdnum.cn import ric
from stdnum.de import idnr as de_idnr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.pl import pesel
from stdnum.se import personnummer
from stdnum.us import itin, ssn
from stdnum.za import idnr as za_idnr

# Confidence of a match: check digits fit; only the shape fits; or it may well be something else.
CHECKED, SHAPED, LIKELY = 3, 2, 1


@dataclass(frozen=True)
class Match:
    """Characters `start` to `end` of a text."""

    start: int
    end: int
    score: int


# Letters of scripts that put no spaces between words, where an address ends at the first letter of another script.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af"
_WORD = rf"[^\W_{_UNSPACED}]"
_DOMAIN = "|".join(
    rf"(?:{letter}(?:(?:{letter}|[-_]){{0,61}}{letter})?[.。])+(?:xn--[a-z0-9-]{{2,59}}|(?:(?!\d){letter}){{2,63}})(?!{letter})"
    for letter in (_WORD, r"[^\W_]")
)
_AT = re.compile(rf"[@＠](?:{_DOMAIN})", re.IGNORECASE)
# The local part before the @, matched at its end; letters of scripts without spaces only if the other pattern finds
# nothing. 64 characters is the limit of the mail standard.
_LOCAL = [re.compile(rf"(?:{letter}|[.!#$%&'*+/=?^_`{{|}}~-]){{1,64}}\Z") for letter in (_WORD, r"\w")]


def _email(text: str) -> Iterator[Match]:
    for match in _AT.finditer(text):
        before = max(0, match.start() - 64), match.start()
        if local := _LOCAL[0].search(text, *before) or _LOCAL[1].search(text, *before):
            yield Match(local.start(), match.end(), SHAPED)


# Countries whose numbers are found without their +code. Each country costs time and adds false matches.
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "BR")
_ABROAD = {region: "011" if region == "US" else "00" for region in _REGIONS}
_SEVEN_DIGITS = re.compile(r"\d(?:[^\d\n]{0,4}\d){6}")
# Matches of the library that are rather dates, or like "invoice 2024-000123".
_DATE = re.compile(r"(?<!\d)(?:[0-3]?\d\.[01]?\d\.(?:19|20)\d\d(?!\d)|(?:19|20)\d\d-)")


# The library takes a tenth of a millisecond to check a number for one country. After this many checks in a text, all
# further candidates count as phone numbers.
_MOST_JUDGED = 2000


def _phone(text: str) -> Iterator[Match]:
    if not _SEVEN_DIGITS.search(text):
        return
    for match in _Matcher(text):
        # Some matches begin with the space before the number.
        start = match.end - len(match.raw_string.lstrip())
        if text[start] in "+＋":
            yield Match(start, match.end, SHAPED)
        elif not _DATE.search(match.raw_string):
            yield Match(start, match.end, LIKELY)


class _Matcher(phonenumbers.PhoneNumberMatcher):
    """The library's matcher, extended from one country to all of ours in one pass: each candidate is checked only for
    the countries it may belong to, and a number that was found is not searched for again.
    """

    def __init__(self, text: str) -> None:
        # The library gives up after some tries, to save time; this must not.
        super().__init__(text, None, max_tries=len(text), min_candidate_length=7)
        self._judged = 0

    def _parse_and_verify(self, candidate: str, offset: int) -> phonenumbers.PhoneNumberMatch | None:
        for region in _possible_regions(candidate):
            if self._judged >= _MOST_JUDGED:
                return phonenumbers.PhoneNumberMatch(offset, candidate, phonenumbers.PhoneNumber())
            self._judged += 1
            self.preferred_region = region
            if match := super()._parse_and_verify(candidate, offset):
                return match
        return None


@dataclass(frozen=True)
class _Plan:
    """A country's numbering plan, for digits alone."""

    code: str
    number: re.Pattern[str]
    prefix: re.Pattern[str]  # dialled before a number within the country, or from it to others
    without: str  # replacement for the prefix, as `re.sub` takes it

    @classmethod
    def of(cls, region: str) -> "_Plan":
        data: Any = phonenumbers.PhoneMetadata.metadata_for_region(region)
        return cls(
            str(data.country_code),
            re.compile(data.general_desc.national_number_pattern),
            re.compile(rf"(?:{data.national_prefix_for_parsing or '(?!)'})"),
            data.national_prefix_transform_rule or "",
        )

    def may_have(self, digits: str) -> bool:
        """Whether digits may be a number of the country, with or without its code or prefix."""
        for number in (digits, digits.removeprefix(self.code)):
            if self.number.fullmatch(number):
                return True
            if (found := self.prefix.match(number)) and self.number.fullmatch(
                (found.expand(self.without) if found.lastindex else "") + number[found.end() :]
            ):
                return True
        return False


_PLANS = {region: _Plan.of(region) for region in _REGIONS}
_PLAIN_NUMBER = re.compile(r"[0-9\s()\[\]./\u2010-\u2015-]*")


def _possible_regions(candidate: str) -> Iterator[str]:
    """Yields the countries that a number may belong to: one for a number with a + code, which names its country itself;
    all of them for a number with letters or an extension.
    """
    digits = _NOT_DIGITS.sub("", candidate)
    if candidate.lstrip(" ([（［").startswith(("+", "＋")):
        yield _REGIONS[0]
    elif not _PLAIN_NUMBER.fullmatch(candidate):
        yield from _REGIONS
    else:
        for region, plan in _PLANS.items():
            if digits.startswith(_ABROAD[region]) or plan.may_have(digits):
                yield region


_GROUP = r"[ \u00a0\u202f.–-]"
# A lookahead, so that every start is tried and a number before a card does not hide it: "12 4111 1111 1111 1111".
_CARD = re.compile(
    r"(?<![0-9])"
    rf"(?=([0-9]{{14,19}}|[0-9]{{4}}({_GROUP})[0-9]{{4}}\2[0-9]{{4}}\2[0-9]{{4}}|[0-9]{{4}}({_GROUP})[0-9]{{6}}\3[0-9]{{4,5}})"
    rf"({_GROUP}[0-9]{{1,3}})?(?![0-9]))"
)
_ISSUERS = {
    14: re.compile("3[0689]"),
    15: re.compile("3[47]"),
    **{length: re.compile("[456]|2[2-7]|3[05689]|8[12]|9792") for length in range(16, 20)},
}
_DECIMAL_POINT = re.compile(r"(?<![0-9])[0-9]{1,3}[.,]\Z")
_NOT_DIGITS = re.compile("[^0-9]")


def _card(text: str) -> Iterator[Match]:
    for match in _CARD.finditer(text):
        if _DECIMAL_POINT.search(text, max(0, match.start() - 5), match.start()):
            continue
        for end in {match.end(4), match.end(1)} - {-1}:
            digits = _NOT_DIGITS.sub("", text[match.start() : end])
            issuer = _ISSUERS.get(len(digits))
            if issuer and issuer.match(digits) and luhn.is_valid(digits):
                yield Match(match.start(), end, CHECKED)


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,30}")


def _iban(text: str) -> Iterator[Match]:
    position = 0
    while match := _IBAN.search(text, position):
        # The words after the number may look like a part of it: the longest valid IBAN counts.
        ends = [end for end in range(match.end(), match.start() + 14, -1) if not text[end : end + 1].isalnum()]
        end = next((end for end in ends if iban.is_valid(text[match.start() : end].replace("\u00a0", " "))), None)
        if end is not None:
            yield Match(match.start(), end, CHECKED)
        position = end or match.start() + 4


_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?:/[0-9]{1,2})?(?!\w|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:.]{3,}(?:%\w{1,15})?(?:/[0-9]{1,3})?(?![\w:])")


def _ip(text: str) -> Iterator[Match]:
    for match in _IPV4.finditer(text):
        if _is_address(match[0]):
            yield Match(*match.span(), SHAPED)
    for match in _IPV6.finditer(text):
        found = match[0] if _is_address(match[0]) else match[0].rstrip(".:")
        # `a::b` is an address, too, but more likely a name in source code.
        looks_so = any(character.isdigit() for character in found) or found.count(":") > 2
        if found.count(":") >= 2 and looks_so and _is_address(found):
            yield Match(match.start(), match.start() + len(found), SHAPED)


def _is_address(text: str) -> bool:
    try:
        # Every address is shorter; the library would read a text of any length.
        return len(text) < 64 and bool(ipaddress.ip_interface(text))
    except ValueError:
        return False


_MAC = re.compile(
    r"(?<![\w:.-])(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![\w:-])"
)


def _mac(text: str) -> Iterator[Match]:
    for match in _MAC.finditer(text):
        yield Match(*match.span(), SHAPED)


_URL = re.compile(
    # Letters of scripts without spaces may come directly before it.
    r"(?<![a-z0-9_@])(?:(?:https?|ftps?|wss?)://|www[0-9]{0,3}\.)[^\s<>\"«»“”„、。，；）」』]+"
    # Without a scheme or www, a host counts only with a common top-level domain: "end.Of" would match otherwise.
    r"|(?<![\w@.-])(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+"
    r"(?:com|org|net|edu|gov|mil|int|info|biz|io|dev|app|me|co|ai|eu|uk|de|fr)(?![\w-]|\.\w)(?::[0-9]{1,5})?(?:/[^\s<>\"«»]*)?",
    re.IGNORECASE,
)


def _url(text: str) -> Iterator[Match]:
    for match in _URL.finditer(text):
        end = match.end()
        # Drop the sentence's punctuation after it; keep a closing bracket if its opening one is inside.
        surplus = match[0].count(")") - match[0].count("(")
        while text[end - 1] in ".,;:!?'*]}" or (text[end - 1] == ")" and surplus > 0):
            surplus -= text[end - 1] == ")"
            end -= 1
        yield Match(match.start(), end, SHAPED)


_SSN = re.compile(r"(?<![\w-])[0-9]{3}([- ])[0-9]{2}\1[0-9]{4}(?![\w-])")
_SSN_BARE = re.compile(r"\b(?:ssn|social\s+security)[^0-9\n]{0,24}([0-9]{9})(?![0-9])", re.IGNORECASE)


def _ssn(text: str) -> Iterator[Match]:
    spans = [match.span() for match in _SSN.finditer(text)] + [match.span(1) for match in _SSN_BARE.finditer(text)]
    for start, end in spans:
        digits = _NOT_DIGITS.sub("", text[start:end])
        if ssn.is_valid(digits) or itin.is_valid(digits):
            yield Match(start, end, SHAPED)


def _is_nino(text: str) -> bool:
    return text[:2] not in {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}


# The shape of each country's number, and its validator.
_NATIONAL: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", cpf.is_valid),
    (r"[0-9]{17}[0-9X]", ric.is_valid),
    (r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", de_idnr.is_valid),
    (r"[0-9]{8}-?[A-Z]", dni.is_valid),
    (r"[XYZ]-?[0-9]{7}-?[A-Z]", nie.is_valid),
    (r"[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-Y]", hetu.is_valid),
    (r"[12] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", nir.is_valid),
    (r"[0-9]{3}[ -][0-9]{3}[ -][0-9]{4}", nhs.is_valid),
    (r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:[0-9]{2} ?){3}[A-D]", _is_nino),
    (r"[2-9][0-9]{3}[ -]?[0-9]{4}[ -]?[0-9]{4}", aadhaar.is_valid),
    (r"[A-Z]{5}[0-9]{4}[A-Z]", pan.is_valid),
    (r"[A-Z]{6}[0-9]{2}[A-Z][0-9]{2}[A-Z][0-9]{3}[A-Z]", codicefiscale.is_valid),
    (r"[0-9]{6}-[1-8][0-9]{6}", rrn.is_valid),
    (r"[0-9]{11}", pesel.is_valid),
    (r"(?:[0-9]{2})?[0-9]{6}[-+][0-9]{4}", personnummer.is_valid),
    (r"[0-9]{13}", za_idnr.is_valid),
)
_FOUR_DIGITS = re.compile(r"[0-9](?:[^0-9]?[0-9]){3}")
_NATIONAL_PATTERNS = [(re.compile(rf"(?<![\w-]){shape}(?![\w-])"), check) for shape, check in _NATIONAL]


def _national_id(text: str) -> Iterator[Match]:
    if not _FOUR_DIGITS.search(text):
        return
    for pattern, check in _NATIONAL_PATTERNS:
        for match in pattern.finditer(text):
            if check(match[0]):
                yield Match(*match.span(), CHECKED)


FINDERS: Mapping[str, Callable[[str], Iterator[Match]]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "ip": _ip,
    "mac": _mac,
    "url": _url,
    "ssn": _ssn,
    "national_id": _national_id,
}
