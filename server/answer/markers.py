"""What a model writes, taken apart as it comes: the text of the answer, and the passages that it cites by [n]."""

import re

# One passage or several, as [1], [2, 3] or 【1】, with the space before: some of it, as a regular expression takes the
# square of its length.
_MARKER = re.compile(r"\s{0,8}[\[【]([1-9]\d?(?:[,;]\s?[1-9]\d?)*)[\]】]")
# What may become one with the next piece.
_BEGUN = re.compile(r"\s{0,8}(?:[\[【][\d,; ]*)?\Z")
# No marker is longer, nor is a space before one.
_LONGEST = 32
# What the model writes if the passages have no answer.
NOT_FOUND = "NOT_FOUND"


class Marked:
    """An answer with markers, which come apart from its text."""

    def __init__(self) -> None:
        self.text = ""
        self.is_not_found = False
        self.cited: list[tuple[int, int]] = []  # after so many characters of the text, the number of a passage
        self._held = ""

    def add(self, piece: str) -> str:
        """Adds what the model wrote. Returns the text that is certain by now."""
        self._held += piece
        if not self.text and not self.cited:
            self._held = self._held.lstrip()
            begun = self._held.upper().replace(" ", "_")
            if NOT_FOUND.startswith(begun):
                return ""
            self.is_not_found = begun.startswith(NOT_FOUND) and not begun[len(NOT_FOUND)].isalnum()
        if self.is_not_found:
            return ""
        return self._released(_BEGUN.search(self._held, max(0, len(self._held) - _LONGEST)))

    def end(self) -> str:
        """Returns the rest of the text, after the last piece."""
        self._held = self._held.rstrip()
        self.is_not_found |= not self.text and self._held.upper().replace(" ", "_") == NOT_FOUND
        return "" if self.is_not_found else self._released(None)

    def _released(self, begun: re.Match[str] | None) -> str:
        held, released, at = self._held, "", 0
        for marker in _MARKER.finditer(held):
            released += held[at : marker.start()]
            place = len(self.text) + len(released)
            self.cited += [(place, int(number)) for number in re.findall(r"\d+", marker[1])]
            at = marker.end()
        end = max(at, begun.start()) if begun else len(held)
        released += held[at:end]
        self._held = held[end:]
        self.text += released
        return released
