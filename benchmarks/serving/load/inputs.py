"""What is sent. No input is sent twice, in this run or another, so that no prefix cache can answer for the model: each
begins with a running number of eight digits, which starts at random. That costs a few tokens per input.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuneserve.benchmarks.serving.load import texts as samples
from tuneserve.benchmarks.serving.load.settings import Settings, Share


@dataclass(frozen=True)
class Request:
    """What one call sends."""

    texts: Sequence[str]  # to classify, embed or rank; one prompt, or the last message of a chat
    query: str = ""  # that texts are ranked for
    max_tokens: int = 0  # of the answer that is generated
    history: Sequence[tuple[str, str]] = ()  # of a chat: role and text of each message before

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and text of each message of a chat."""
        return [*self.history, ("user", self.texts[0])]


def requests(settings: Settings, call: str, share: Share) -> Iterator[Request]:
    """Yields the requests of a process; all of its connections take theirs from it.

    Raises UserError if the file of texts can't be read.
    """
    generates = call in ("chat", "generate")
    given = samples.read(settings.texts) if settings.texts else samples.PROMPTS if generates else samples.SENTENCES
    texts = (f"{number} {text}" for number, text in share.deal(enumerate(itertools.cycle(given), share.number)))

    def made() -> Iterator[Request]:
        while True:
            query = next(texts) if call == "rank" else ""
            yield Request(list(itertools.islice(texts, settings.batch)), query, settings.max_tokens)

    return made()
