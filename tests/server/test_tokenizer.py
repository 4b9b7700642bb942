import pytest

from tuneserve.server.redaction import Redactor
from tuneserve.server.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(make_bert):
    return make_bert("ForSequenceClassification", ["neg", "pos"])


@pytest.fixture
def tokenizer(directory):
    tokenizer = Tokenizer(directory, 12)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def masking(directory):
    tokenizer = Tokenizer(directory, 64, Redactor(["email", "ip"]))
    yield tokenizer
    tokenizer.close()


async def test_offsets_words_and_special_tokens(tokenizer):
    [tokens] = await tokenizer.encode(["the hamburg film"])
    assert tokens.encoded.token_ids[0] == 2
    assert tokens.encoded.token_ids[-1] == 3
    assert tokens.words == [None, 0, 1, 2, None]
    assert tokens.offsets == [(0, 0), (0, 3), (4, 11), (12, 16), (0, 0)]
    assert (tokens.length, tokens.truncated) == (5, False)


async def test_both_kinds_of_calls_side_by_side(tokenizer):
    long = "good " * 30
    [whole], [cut] = await tokenizer.encode([long]), await tokenizer.encode([long], truncate=True)
    assert (whole.length, whole.truncated) == (32, False)
    assert (cut.length, cut.truncated) == (12, True)
    [bare] = await tokenizer.encode(["good"], special_tokens=False)
    assert bare.length == 1


async def test_masked_text_is_what_the_model_sees_and_offsets_are_the_callers(masking, tokenizer):
    text = "good film@example.com was 10.20.30.40 bad"
    [tokens] = await masking.encode([text])
    [expected] = await tokenizer.encode(["good [EMAIL] was [IP] bad"])
    assert tokens.encoded == expected.encoded
    own = [text[start:end] for (start, end), word in zip(tokens.offsets, tokens.words, strict=True) if word is not None]
    assert own == ["good", *["film@example.com"] * 3, "was", *["10.20.30.40"] * 3, "bad"]


async def test_both_texts_of_a_pair_are_masked(masking, tokenizer):
    pair = ("a good film 10.20.30.40", "film@example.com was bad")
    [tokens] = await masking.encode([pair])
    [expected] = await tokenizer.encode([("a good film [IP]", "[EMAIL] was bad")])
    assert tokens.encoded == expected.encoded
    assert tokens.offsets[0] == (0, 0)
    start = tokens.encoded.pair_start
    assert [pair[1][a:b] for a, b in tokens.offsets[start:-1]] == [*["film@example.com"] * 3, "was", "bad"]
    assert pair[0][slice(*tokens.offsets[start - 2])] == "10.20.30.40"


async def test_masked_gives_the_text_for_whoever_cuts_it(masking, tokenizer):
    assert [one.text for one in await masking.masked(["film@example.com", "good"])] == ["[EMAIL]", "good"]
    assert [one.text for one in await tokenizer.masked(["film@example.com"])] == ["film@example.com"]


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
