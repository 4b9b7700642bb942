"""Back-translation: training rows in other words, translated to another language and back (Sennrich et al. 2016, Edunov
et al. 2018), by a generation model that a server of ours serves.

Translations are made once: each is kept in a database in the cache of samples, by the model's version, the prompt and
the text. So a second run, a resumed one, and the trials of a search ask for nothing twice.
"""

import hashlib
import logging
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from tqdm import tqdm

from tuneserve.checkpoint.rows import Row
from tuneserve.client import CallError, Client, InvalidInput
from tuneserve.errors import UserError
from tuneserve.evaluation import quality
from tuneserve.finetune.config import BACK_TRANSLATED, FinetuneConfig
from tuneserve.samples.packages import default_cache

logger = logging.getLogger(__name__)

DATABASE = "translations.sqlite"
PROMPT = "Translate the following text into {language}. Answer with the translation only.\n\n{text}"
CALLS = 8  # at once
MOST_TOKENS = 512  # of a translation
_TABLE = "CREATE TABLE IF NOT EXISTS translations (key BLOB PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID"

Translate = Callable[[Sequence[str], str], Sequence[str]]


@dataclass(frozen=True)
class BackTranslated:
    """New rows, and the number of those that were dropped, by reason."""

    rows: Sequence[Row] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def of(rows: Sequence[Row], config: FinetuneConfig) -> BackTranslated:
    """Returns the rows in other words, one for each language and each of at most `translation_rows` rows.

    Raises UserError if the server can't be reached, or can't translate.
    """
    if not config.back_translation:
        return BackTranslated()
    assert config.translation_server
    assert config.translation_model
    count = min(len(rows), config.translation_rows)
    chosen = [rows[place] for place in sorted(random.Random(config.seed).sample(range(len(rows)), count))]
    path = default_cache() / DATABASE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Client(config.translation_server) as client, closing(sqlite3.connect(path, isolation_level=None)) as kept:
            kept.execute(_TABLE)
            model = _Model(client, config.translation_model, kept)
            found = back_translated(chosen, BACK_TRANSLATED[config.task], config, model.translate)
    except CallError as error:
        raise UserError(
            f"translation_server: {config.translation_server}: {error}",
            "start a server there with the model that translation_model names; TUNESERVE_KEY is its API key",
        ) from None
    dropped = ", ".join(f"{number} {reason}" for reason, number in found.dropped.items())
    logger.info("back-translation: %d new rows from %d%s", len(found.rows), count, dropped and f"; dropped: {dropped}")
    return found


def back_translated(
    rows: Sequence[Row], keys: Sequence[str], config: FinetuneConfig, translate: Translate
) -> BackTranslated:
    """Returns the rows with their texts of these keys translated and back. `translate(texts, language)` gives an empty
    text for what it can't translate.
    """
    made: list[Row] = []
    dropped: Counter[str] = Counter()
    given = [(number, key) for number, row in enumerate(rows) for key in keys if key in row]
    texts = [rows[number][key] for number, key in given]
    known = [{tuple(quality.words(row[key])) for key in keys if key in row} for row in rows]
    for language in config.back_translation or ():
        back = translate(translate(texts, language), config.text_language)
        changed: list[Row] = [{} for _ in rows]
        for (number, key), text in zip(given, back, strict=True):
            changed[number][key] = text
        for number, texts_of in enumerate(changed):
            words = [tuple(quality.words(text)) for text in texts_of.values()]
            if not all(words):
                dropped["empty or unfinished"] += 1
            elif known[number].issuperset(words):
                dropped["the same words"] += 1
            else:
                known[number].update(words)
                made.append(rows[number] | texts_of)
    return BackTranslated(made, dropped)


class _Model:
    """A served generation model, and the translations that it has made."""

    def __init__(self, client: Client, name: str, kept: sqlite3.Connection) -> None:
        self._client, self._name, self._kept = client, name, kept
        # An alias or another version of the same name must not answer from what this one has said.
        self._version = client.tokenize(name, "a").model_version

    def translate(self, texts: Sequence[str], language: str) -> Sequence[str]:
        """Returns each text in a language; empty for an empty text, and for what the model did not finish."""
        prompts = [PROMPT.format(language=language, text=text) if text else "" for text in texts]
        found = {"": ""} | {prompt: text for prompt in set(prompts) if (text := self._known(prompt)) is not None}
        for prompt, text in self._asked([prompt for prompt in dict.fromkeys(prompts) if prompt not in found]):
            self._kept.execute("INSERT OR REPLACE INTO translations VALUES (?, ?)", (self._key(prompt), text))
            found[prompt] = text
        return [found[prompt] for prompt in prompts]

    def _asked(self, prompts: Sequence[str]) -> Iterator[tuple[str, str]]:
        with ThreadPoolExecutor(CALLS) as pool:
            answers = pool.map(self._answer, prompts)
            try:
                yield from zip(prompts, tqdm(answers, total=len(prompts), desc="translating", leave=False), strict=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, prompt: str) -> str:
        # A translation has about as many tokens as its text, and seldom more than the text has characters.
        tokens = min(MOST_TOKENS, 32 + len(prompt) - len(PROMPT))
        try:
            answer = self._client.chat(
                self._name, [{"role": "user", "content": prompt}], temperature=0, max_tokens=max(32, tokens)
            )
        except InvalidInput:
            # Longer than the model reads.
            return ""
        return answer.text.strip() if answer.finish_reason == "stop" else ""

    def _known(self, prompt: str) -> str | None:
        row = self._kept.execute("SELECT text FROM translations WHERE key = ?", (self._key(prompt),)).fetchone()
        return row and str(row[0])

    def _key(self, prompt: str) -> bytes:
        return hashlib.sha256(f"{self._version}\n{prompt}".encode()).digest()
