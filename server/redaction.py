"""Personal data out of a text before it goes anywhere, and places in what is left back to the caller's own text.

Each match becomes a placeholder, [EMAIL]. Where matches overlap, all of their characters go, and the surest of them,
then the longest, names the placeholder. What is found, and how, is `recognizers.py`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tuneserve.errors import UserError
from tuneserve.server.errors import InvalidInput

# Characters. Matching holds up every other call while it lasts, up to 40 ms for each thousand of a hostile text.
_LONGEST = 20_000
KINDS = ("email", "phone", "card", "iban", "ip", "mac", "url", "ssn", "national_id")


def check(kinds: Sequence[str], where: str) -> None:
    """Raises UserError naming the first kind that there is not."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"{where}: {kind!r} is not allowed", f"allowed: {', '.join(KINDS)}")


@dataclass(frozen=True)
class _Cut:
    """A placeholder: where it is in the masked text, and what it stands for in the caller's."""

    start: int
    end: int
    original_start: int
    original_end: int


class Masked:
    """A text without its personal data."""

    def __init__(self, text: str, cuts: Sequence[_Cut] = ()) -> None:
        self.text = text
        self._cuts = cuts
        self._starts = [cut.start for cut in cuts]
        self._ends = [cut.end for cut in cuts]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Returns the place in the caller's text. One that touches a placeholder covers all that it stands for."""
        if not self._cuts:
            return start, end
        return self._map(start, bisect_right(self._starts, start), False), self._map(
            end, bisect_left(self._starts, end), True
        )

    def _map(self, position: int, before: int, is_end: bool) -> int:
        """`before` placeholders begin before the position, or at it where it is a start."""
        if not before:
            return position
        cut = self._cuts[before - 1]
        if position < cut.end:
            return cut.original_end if is_end else cut.original_start
        return position + cut.original_end - cut.end


class Redactor:
    """Masks some kinds of personal data. May be used by several threads."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`kinds` are of KINDS."""
        from tuneserve.server.recognizers import FINDERS

        self._finders = [(f"[{kind.upper()}]", FINDERS[kind]) for kind in dict.fromkeys(kinds)]

    def mask(self, text: str) -> Masked:
        """Returns the text with a placeholder for each match. Raises InvalidInput for a text that is too long."""
        if len(text) > _LONGEST:
            what = f"has {len(text)} characters; a model that masks personal data takes at most {_LONGEST} in one text"
            raise InvalidInput("text", what)
        found = sorted(
            (match.start, match.end, match.score, placeholder)
            for placeholder, find in self._finders
            for match in find(text)
        )
        if not found:
            return Masked(text)
        parts: list[str] = []
        cuts: list[_Cut] = []
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
            cuts.append(_Cut(length, length + len(best[3]), start, end))
            length += len(best[3])
            done = end
        return Masked("".join([*parts, text[done:]]), cuts)
