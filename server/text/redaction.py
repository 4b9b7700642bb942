"""Masks personal data in a text before anything else is done with it, and maps offsets back to the caller's text.

Each match becomes a placeholder, such as [EMAIL]. Overlapping matches become one placeholder that covers all their
characters, named after the match with the highest score, then the longest. `recognizers.py` finds the matches.

Texts are normalized for the search: digits of any script, full-width letters and dashes count as the plain ones, and
invisible characters are skipped.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tuneserve.errors import UserError

# Characters of one text: masking takes up to 20 ms for each thousand characters of a hostile text.
LONGEST = 20_000
KINDS = ("email", "phone", "card", "iban", "ip", "mac", "url", "ssn", "national_id")


def check(kinds: Sequence[str], where: str) -> None:
    """Raises UserError naming the first unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"{where}: {kind!r} is not allowed", f"allowed: {', '.join(KINDS)}")


@dataclass(frozen=True)
class _Placeholder:
    """A placeholder: its range in the masked text, and the range it replaces in the caller's text."""

    start: int
    end: int
    original_start: int
    original_end: int


# A text without any of these has no matches.
_NEEDED = re.compile(r"[0-9@.:]")
# Characters that Unicode declares compatible with one of these are read as it. Signs that end an address are not.
_SIGNS = frozenset("@.:-/+_#%&=~")
# Invisible characters, in addition to Unicode's format characters.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0]")
_MOST_READ = 1 << 16


class _Read(dict[int, str]):
    """The normalized form of each character, by code point."""

    def __missing__(self, code: int) -> str:
        if len(self) > _MOST_READ:
            self.clear()
        read = self[code] = _read(chr(code))
        return read


def _read(character: str) -> str:
    category = unicodedata.category(character)
    # Marks are dropped, too: a digit with a keycap mark is still a digit.
    if category in ("Cf", "Mn", "Me") or _UNSEEN.match(character):
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Pd" or character == "\u2212":
        return "-"
    if category == "Zs":
        return " "
    plain = unicodedata.normalize("NFKC", character)
    return plain if plain.isalnum() or plain in _SIGNS else character


_READ = _Read()


class Masked:
    """A text with its personal data masked."""

    def __init__(self, text: str, placeholders: Sequence[_Placeholder] = ()) -> None:
        self.text = text
        self.found = bool(placeholders)
        self._placeholders = placeholders
        self._starts = [one.start for one in placeholders]
        self._ends = [one.end for one in placeholders]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Returns the range in the caller's text. A range that touches a placeholder covers all that it replaces."""
        if not self._placeholders:
            return start, end
        return self._map(start, bisect_right(self._starts, start), False), self._map(
            end, bisect_left(self._starts, end), True
        )

    def _map(self, position: int, before: int, is_end: bool) -> int:
        """`before` placeholders begin before the position, or at it if it is a start."""
        if not before:
            return position
        one = self._placeholders[before - 1]
        if position < one.end:
            return one.original_end if is_end else one.original_start
        return position + one.original_end - one.end


class Redactor:
    """Masks some kinds of personal data. May be used by several threads."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds` are members of KINDS."""
        from tuneserve.server.text.recognizers import FINDERS

        self._finders = [(f"[{kind.upper()}]", FINDERS[kind]) for kind in dict.fromkeys(kinds)]

    def mask(self, text: str) -> Masked:
        """Returns the text with a placeholder for each match, in time linear in its length."""
        if text.isascii() and not _NEEDED.search(text):
            return Masked(text)
        read = text if text.isascii() else text.translate(_READ)
        found = [
            (match.start, match.end, match.score, placeholder)
            for placeholder, find in self._finders
            for match in find(read)
        ]
        if read != text and found:
            starts = list(accumulate((len(_READ[ord(character)]) for character in text), initial=0))[:-1]

            def place(position: int) -> int:
                """Maps to the visible character, not to invisible ones before it."""
                return bisect_right(starts, position) - 1

            found = [(place(start), place(end - 1) + 1, *what) for start, end, *what in found]  # type: ignore[misc]
        found.sort()
        if not found:
            return Masked(text)
        parts: list[str] = []
        placeholders: list[_Placeholder] = []
        length = done = index = 0
        while index < len(found):
            start, end = found[index][:2]
            best = found[index]
            while index < len(found) and found[index][0] < end:
                end = max(end, found[index][1])
                best = max(best, found[index], key=lambda match: (match[2], match[1] - match[0]))
                index += 1
            parts += [text[done:start], best[3]]
            length += start - done
            placeholders.append(_Placeholder(length, length + len(best[3]), start, end))
            length += len(best[3])
            done = end
        return Masked("".join([*parts, text[done:]]), placeholders)
