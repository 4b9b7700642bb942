"""Questions whose answers are to be found: FAQs, as documents without their questions."""

import html
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve import samples
from tuneserve.checkpoint import rows, sha256_file
from tuneserve.errors import UserError

# Packages of Debian, version 11.1, free documentation: in English, and the same in Chinese.
DEBIAN = {
    "debian-faq": "427426e0cfa6888622fc1d72631071cb4b5a1f86ccde722e7820bcef284de5d0",
    "debian-faq-zh-cn": "3545356b1aa04d87e91dd15e8406210cf5b4f476662e597897bcb42234591758",
}
_VERSION = "11.1"
# A question is a heading; its answer goes on to the next one, or to the page's last line.
_QUESTION = re.compile(r'<h[2-6] class="title"[^>]*>(.*?)</h[2-6]>', re.DOTALL)
_END = re.compile(r'<div class="navfooter">.*', re.DOTALL)
_NUMBER = re.compile(r"[\d.\s]+")


@dataclass(frozen=True)
class Faq:
    """Answers, and questions with the places of those that answer them."""

    name: str
    answers: Sequence[str]
    questions: Sequence[tuple[str, int]]

    @classmethod
    def of(cls, name: str, pairs: Sequence[tuple[str, str]]) -> "Faq":
        """Equal answers are one."""
        answers = list(dict.fromkeys(answer for _, answer in pairs))
        places = {answer: place for place, answer in enumerate(answers)}
        return cls(name, answers, [(question, places[answer]) for question, answer in pairs])


def zaragoza() -> Faq:
    """503 questions about building."""
    return Faq.of("zaragoza-en", [(str(row["query"]), str(row["positive"])) for row in rows.read(samples.faq())])


def debian(package: str) -> Faq:
    """Questions about Debian. Raises UserError without apt-get and dpkg-deb, or if the package is another one."""
    target = samples.default_cache() / package
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, samples.whole(target) as unfinished:
            archive = _downloaded(package, Path(folder))
            subprocess.run(["dpkg-deb", "-x", archive, unfinished], check=True)
    pages = sorted(target.rglob("*.html"))
    # Some pages are there twice, under a second name.
    texts = dict.fromkeys(page.read_text(encoding="utf-8") for page in pages if not page.is_symlink())
    return Faq.of(package, list(dict.fromkeys(pair for text in texts for pair in pairs_of(text))))


def pairs_of(page: str) -> Iterator[tuple[str, str]]:
    """Yields the questions of a page, and their answers."""
    _, *parts = _QUESTION.split(_END.sub("", page))
    for question, answer in zip(parts[::2], parts[1::2], strict=True):
        asked, text = _NUMBER.sub("", _plain(question), count=1), _plain(answer)
        if text and asked.endswith(("?", "？")):
            yield asked, text


def _plain(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def _downloaded(package: str, folder: Path) -> Path:
    name = f"{package}={_VERSION}"
    try:
        done = subprocess.run(["apt-get", "-q", "download", name], cwd=folder, capture_output=True, check=False)
        [archive] = folder.glob("*.deb")
    except (OSError, ValueError):
        raise UserError(f"{name} can't be downloaded", "it takes Debian's apt-get, and its lists of packages") from None
    if done.returncode or sha256_file(archive) != DEBIAN[package]:
        raise UserError(f"{name}: SHA-256 is not {DEBIAN[package]}")
    return archive
