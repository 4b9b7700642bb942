import asyncio
import json
import re
import shutil

import pytest

from tuneserve.errors import CheckpointError
from tuneserve.server.text import tokenizer as text_tokenizer
from tuneserve.server.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(make_bert):
    return make_bert()


@pytest.fixture
def tokenizer(directory):
    tokenizer = Tokenizer(directory, 12)
    yield tokenizer
    tokenizer.close()


async def test_offsets_words_and_special_tokens(tokenizer):
    [tokens] = await tokenizer.encode(["the hamburg film"])
    assert tokens.encoded.token_ids[0] == 2
    assert tokens.encoded.token_ids[-1] == 3
    assert tokens.words == [None, 0, 1, 2, None]
    assert tokens.offsets == [(0, 0), (0, 3), (4, 11), (12, 16), (0, 0)]
    assert (tokens.length, tokens.truncated) == (5, False)


async def test_offsets_of_many_tokens_are_those_of_few(tokenizer, monkeypatch):
    texts = ["the née hamburg film 🙂", ("good bad", "film")]
    before = [tokens.offsets for tokens in await tokenizer.encode(texts, most=99)]
    monkeypatch.setattr(text_tokenizer, "_MANY", 1)
    assert [tokens.offsets for tokens in await tokenizer.encode(texts, most=99)] == before


async def test_both_kinds_of_calls_side_by_side(tokenizer):
    long = "good " * 30
    [whole], [cut] = await tokenizer.encode([long]), await tokenizer.encode([long], truncate=True)
    assert (whole.length, whole.truncated) == (32, False)
    assert (cut.length, cut.truncated) == (12, True)
    [bare] = await tokenizer.encode(["good"], special_tokens=False)
    assert bare.length == 1


async def test_texts_that_are_cut_have_the_same_tokens(directory, tmp_path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = [len(content["model"]["vocab"]) + place for place in range(3)]
    shape = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    for id_, token, special in zip(ids, ("Zürich", "<end>", "Köln"), (False, True, False), strict=True):
        content["added_tokens"].append({"id": id_, "content": token, "special": special, **shape})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path, 99)
    texts = ["the Zürich film <end> köln", "good", ("Köln", "bad <end>")]
    whole, cut = [await tokenizer.encode(texts, truncate=truncate) for truncate in (False, True)]
    tokenizer.close()
    assert set(ids) <= set(whole[0].encoded.token_ids)
    for one, other in zip(whole, cut, strict=True):
        assert (one.encoded, one.offsets, one.words) == (other.encoded, other.offsets, other.words)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_file_that_is_cut_off_is_named_with_its_directory(directory, tmp_path, name):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text((tmp_path / name).read_text()[:40])
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}: can't read the tokenizer's files: "):
        Tokenizer(tmp_path, max_length=16)


async def test_a_panic_of_the_tokenizer_is_an_ordinary_failure(tokenizer, monkeypatch):
    class Panic(BaseException):
        """As Rust's panics come."""

    class Broken:
        def encode_batch(self, *_, **__):
            raise Panic("secret words")

    monkeypatch.setattr(tokenizer, "_whole", Broken())
    with pytest.raises(RuntimeError, match=r"^the tokenizer failed$"):
        await tokenizer.encode(["good"])
    # And the thread goes on.
    assert len(await tokenizer.encode(["good"], truncate=True)) == 1


class Counting:
    """A real tokenizer that counts the characters it is given."""

    def __init__(self, backend, counts: list[int]) -> None:
        self._backend = backend
        self._counts = counts

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def encode_batch(self, texts, **options):
        self._counts.extend(len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts)
        return self._backend.encode_batch(texts, **options)


@pytest.fixture
def counts(tokenizer, monkeypatch) -> list[int]:
    """The characters of each text that is tokenized."""
    found: list[int] = []
    for name in ("_whole", "_truncating"):
        monkeypatch.setattr(tokenizer, name, Counting(getattr(tokenizer, name), found))
    return found


LONG = "good film . " * 100_000


async def test_a_text_that_is_far_too_long_is_not_tokenized_to_its_end(tokenizer, counts):
    [found] = await tokenizer.encode([LONG, "good"])
    assert (found.length, found.truncated, found.encoded.token_ids) == (13, True, [])
    assert sum(counts) <= 1 << 14
    [cut, good] = await tokenizer.encode([LONG, "good"], truncate=True)
    assert (cut.length, cut.truncated, good.length, good.truncated) == (12, True, 3, False)
    [whole] = await tokenizer.encode([LONG[:1200]], most=1000)
    assert (whole.length, whole.truncated) == (302, False)
    assert cut.encoded.token_ids[:11] == whole.encoded.token_ids[:11]
    assert cut.offsets[:11] == whole.offsets[:11]
    assert sum(counts) <= 3 << 14


@pytest.mark.parametrize("text", [" " * 1_000_000 + "good", "\u00a0 good" * 99_999, "x" * 1_000_000, "🙂" * 1_000_000])
async def test_what_no_number_of_tokens_bounds_is_bounded_in_characters(tokenizer, counts, text):
    """White space is no token, and a word that is not in the vocabulary is one, however long."""
    [found] = await tokenizer.encode([text])
    assert (found.length, found.truncated) == (13, True)
    [found] = await tokenizer.encode([text], truncate=True)
    assert found.truncated
    assert sum(counts) <= 5000


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize(
    ("first", "second"), [("good " * 3, "bad " * 9), ("good " * 40, "bad"), ("good " * 9, "bad " * 9)]
)
async def test_pairs_are_as_if_each_were_tokenized_whole(tokenizer, first, second, truncate):
    backend = tokenizer._truncating if truncate else tokenizer._whole
    [expected] = backend.encode_batch([(first, second)])
    [tokens] = await tokenizer.encode([(first, second)], truncate=truncate, most=99)
    assert tokens.encoded.token_ids == expected.ids
    assert tokens.encoded.pair_start == expected.type_ids.index(1)
    assert (tokens.offsets, tokens.words) == (expected.offsets, expected.word_ids)
    assert tokens.truncated == bool(expected.overflowing)


async def test_what_stands_in_many_pairs_is_tokenized_once(tokenizer, counts):
    pairs = [("good film " * 500, f"bad {number}") for number in range(200)]
    found = await tokenizer.encode(pairs, truncate=True)
    assert len(found) == 200
    assert sum(counts) < 20_000
    counts.clear()
    assert len(await tokenizer.encode([("good film " * 50, f"bad {number}") for number in range(200)], most=99)) == 1
    assert sum(counts) < 20_000, "and the first pair that is too long ends it"


async def test_a_batch_has_no_thread_for_itself_and_ends_with_its_call(tokenizer, counts):
    large = [asyncio.create_task(tokenizer.encode(["good film " * 50] * 2000, truncate=True)) for _ in range(4)]
    await asyncio.sleep(0)
    # Behind a piece of each of the others, not behind all of them.
    assert len(await tokenizer.encode(["good film " * 60], most=200)) == 1
    assert not any(task.done() for task in large)
    for task in large:
        task.cancel()
    await asyncio.wait(large)
    # What is in a thread ends there; nothing follows it.
    await tokenizer.apart(lambda: None)
    await tokenizer.apart(lambda: None)
    before = sum(counts)
    await asyncio.sleep(0.05)
    assert sum(counts) == before < 2_000_000
