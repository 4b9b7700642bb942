"""Tiny real models, random weights, made in a second: a BERT encoder and a Llama with a chat template."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint import rows

from .. import tiny

WORDS = [
    *("the", "a", "film", "was", "is", "good", "bad", "great", "awful", "fun", "dull", "story", "acting", "and"),
    *("very", "not", "what", "who", "sky", "blue", "where", "lives", "anna", "in", "berlin", "paris", "john"),
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a classification head, saved as a Hugging Face directory."""
    from transformers import BertTokenizer

    directory = tmp_path_factory.mktemp("models") / "tiny-bert"
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{x}" for x in letters)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=64)
    tiny.model("AutoModel", "bert", vocab_size=len(vocabulary)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings, an end-of-turn token and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    special = ["<|im_start|>", "<|im_end|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", chat_template=TEMPLATE, model_max_length=256
    )
    model = tiny.model(
        "AutoModelForCausalLM",
        "llama",
        vocab_size=len(pieces),
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # Wide enough that frozen embeddings can give sure answers.
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 sentences whose label one word decides."""
    rows: list[dict[str, object]] = []
    for number in range(60):
        good = number % 2 == 0
        word = (("good", "great", "fun"), ("bad", "awful", "dull"))[not good][number % 3]
        filler = WORDS[number % 17 : number % 17 + 3 + number // 17]
        rows.append({"text": " ".join([*filler, "was", word]), "label": "positive" if good else "negative"})
    return write_jsonl(tmp_path_factory.mktemp("data") / "reviews.jsonl", rows)


@pytest.fixture(scope="session")
def run() -> Callable[..., Path]:
    """run(directory, overwrite=False, resume=False, **settings) is the whole program, in fp32 and small."""
    from tuneserve.finetune import config, pipeline

    def finetune(directory: Path, overwrite: bool = False, resume: bool = False, **values: Any) -> Path:
        values = {"output": "out", "precision": "fp32", "max_length": 64, **values}
        return pipeline.finetune(config.parse(values, directory), overwrite, resume)

    return finetune


@pytest.fixture(scope="session")
def trained(run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, encoder: Path, reviews: Path) -> Path:
    """A sequence classifier tuned with LoRA, and its adapter beside it."""
    return run(
        tmp_path_factory.mktemp("lora"),
        task="sequence-classification",
        base_model=str(encoder),
        train=str(reviews),
        test_size=0.2,
        epochs=40,
        batch_size=8,
        learning_rate=2e-3,
        max_length=500,
    )


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    """A copy of the adapter that a test may damage."""
    return Path(shutil.copytree(trained.with_name("out-adapter"), tmp_path / "adapter"))


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 questions with the same answer."""
    rows: list[dict[str, object]] = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(40)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "talk.jsonl", rows)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 passages, each with two queries for it, and some with a wrong one; asked.jsonl beside it has a third query."""
    directory = tmp_path_factory.mktemp("data")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    rows: list[dict[str, object]] = []
    for word in ("what", "where", "who"):
        for number in range(30):
            query = f"{word} is {letters[number % 26]}{letters[number // 26]}"
            # The passage has another word, so that its words don't tell.
            passage = f"the story was {letters[(number + 7) % 26]}{letters[number // 26]}"
            negatives = {"negatives": ["the sky is blue"]} if number % 5 == 0 else {}
            rows.append({"query": query, "positive": passage, **negatives})
    write_jsonl(directory / "asked.jsonl", rows[60:])
    return write_jsonl(directory / "pairs.jsonl", rows[:60])


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """24 sentences, all of a label that the reviews don't have."""
    rows.write(
        tmp_path / "new.jsonl",
        (
            {
                "text": " ".join(["john"] * (n // 4 + 1) + ["lives in", ("berlin", "paris", "blue", "sky")[n % 4]]),
                "label": "place",
            }
            for n in range(24)
        ),
    )
    return tmp_path / "new.jsonl"
