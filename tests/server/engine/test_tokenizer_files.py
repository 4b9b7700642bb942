import json

import pytest

from tuneserve.server.engine.tokenizer_files import readable


def with_decoder(directory, *kinds: str):
    decoders = [{"type": kind} for kind in kinds]
    decoder = decoders[0] if len(decoders) == 1 else {"type": "Sequence", "decoders": decoders}
    content = json.loads((directory / "tokenizer.json").read_text()) | {"decoder": decoder}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("kinds", [["ByteLevel"], ["Replace", "ByteFallback", "Fuse", "Strip"], ["WordPiece"]])
def test_one_way_to_write_bytes_is_read_as_it_is(make_llama, kinds):
    directory = with_decoder(make_llama(), *kinds)
    with readable(directory) as found:
        assert found == directory


def test_no_tokenizer_file_is_left_to_whoever_needs_one(tmp_path):
    with readable(tmp_path) as found:
        assert found == tmp_path


def test_of_two_ways_the_one_that_is_used_stays(make_llama):
    from transformers import AutoTokenizer

    directory = make_llama()
    content = json.loads((directory / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, replace, content["decoder"]],
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    before = AutoTokenizer.from_pretrained(directory)
    with readable(directory) as found:
        assert found != directory
        assert json.loads((found / "tokenizer.json").read_text())["decoder"]["type"] == "ByteLevel"
        assert not list(found.glob("*.safetensors"))
        after = AutoTokenizer.from_pretrained(found)
    assert not found.exists()
    text = "the film was <|end|> née 東京 🙂\n a  b"
    assert after.get_vocab() == before.get_vocab()
    assert after.encode(text) == before.encode(text)
    assert after.decode(after.encode(text)) == before.decode(before.encode(text)) == text
    assert after.chat_template == before.chat_template
