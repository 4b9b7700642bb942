"""A tagger that learned from prose finds the same spans in prose as a caller counts them, through the real server.

Its tokenizer is of bytes, as those of most models today: spaces belong to the words after them, and an emoji or a
Chinese character is several tokens.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.entities import spans_of
from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation import measurement
from tuneserve.serving import serving
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from .. import tiny

pytestmark = [
    pytest.mark.engine,
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

PEOPLE = ["Anna", "Zoë Lee", "María-José", "王伟", "山田"]
PLACES = ["Paris", "New York", "São Paulo", "東京", "北京"]
TEXTS = [
    "{0} met {1} in {2}, twice! 🙂",
    "🙂👍🏽 {2} ({0}) -- ok?",
    '"{0}", said {1}, "is in {2}."',
    "{2}'s mayor: {0}; {1}.\nOK",
    "{0}は{2}に行った。",
    "{0}在{2}，{1}不在。",
    "nobody 👩‍🚀 is here, or there: 人山人海!",
]


def written(text: str, person: str, other: str, place: str) -> Row:
    """A text with its three names, and where they are."""
    parts, found, so_far = text.replace("{", "|{").replace("}", "}|").split("|"), [], ""
    for part in parts:
        said = part.format(person, other, place)
        if part.startswith("{"):
            label = "LOC" if part == "{2}" else "PER"
            found.append({"start": len(so_far), "end": len(so_far) + len(said), "label": label})
        so_far += said
    return {"text": so_far, "entities": found}


def sentences() -> list[Row]:
    names = [(a, b, c) for a, b in itertools.permutations(PEOPLE, 2) for c in PLACES]
    found = {row["text"]: row for text in TEXTS for row in (written(text, *three) for three in names)}
    return random.Random(0).sample(list(found.values()), len(found))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of two layers, trained on the sentences from nothing."""
    import tokenizers
    import transformers

    from tuneserve.finetune import config, pipeline

    folder = tmp_path_factory.mktemp("tagger")
    every = sentences()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    # Names apart from what is around them: no token is of both.
    seen = [part for text in TEXTS for part in re.split(r"\{.\}", text)] + [f" {name}" for name in PEOPLE + PLACES]
    inner.train_from_iterator(
        seen * 2, tokenizers.trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    )
    inner.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names, model_max_length=96)
    spaced = [
        place for place in tokenizer("in New York", return_offsets_mapping=True)["offset_mapping"] if place[0] == 2
    ]
    assert spaced == [(2, 6)], "the space is counted to the word"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 128}
    made = tiny.model("AutoModel", "roberta", vocab_size=len(tokenizer), pad_token_id=1, **sizes)
    made.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows.write(folder / "prose.jsonl", every)
    values = {"task": "token-classification", "base_model": "base", "train": "prose.jsonl", "output": "out"}
    values |= {"method": "full", "epochs": 6, "learning_rate": 3e-3, "batch_size": 16, "precision": "fp32"}
    return pipeline.finetune(config.parse(values | {"test_size": 0.2, "max_length": 96}, folder))


@pytest.fixture(scope="module")
def address(tagger: Path) -> Iterator[str]:
    with serving({measurement.MODEL: tagger}) as addresses:
        yield addresses.grpc


def test_it_is_as_good_served_as_it_was_trained(tagger: Path, address: str) -> None:
    manifest = checkpoint.load(tagger)
    held_out = rows.read(tagger / manifest.test_split.path)
    measured = measurement.measure_at(address, manifest, held_out, tagger)
    assert measured.metrics["entity_f1"] > 0.95
    assert measured.metrics["entity_f1"] == pytest.approx(manifest.lineage[-1].metrics["entity_f1"], abs=0.01)


UNITS: dict[int, Callable[[str], int]] = {
    common_pb2.OFFSET_UNIT_CODE_POINT: len,
    common_pb2.OFFSET_UNIT_UTF8_BYTE: lambda text: len(text.encode()),
    common_pb2.OFFSET_UNIT_UTF16: lambda text: len(text.encode("utf-16-le")) // 2,
}


@pytest.mark.parametrize("aggregation", [pb.AGGREGATION_SIMPLE, pb.AGGREGATION_FIRST, pb.AGGREGATION_MAX])
@pytest.mark.parametrize("unit", UNITS)
def test_spans_of_prose(address: str, unit: int, aggregation: int) -> None:
    asked = [written(text, "Anna", "王伟", "New York") for text in TEXTS]
    with grpc.insecure_channel(address) as channel:
        request = pb.ClassifyTokensRequest(
            model=measurement.MODEL,
            texts=[row["text"] for row in asked],
            offset_unit=common_pb2.OffsetUnit.Name(unit),
            aggregation=pb.Aggregation.Name(aggregation),
        )
        results = ClassificationServiceStub(channel).ClassifyTokens(request, timeout=60).results
    count = UNITS[unit]
    for row, result in zip(asked, results, strict=True):
        text = row["text"]
        expected = [
            (kind, count(text[:start]), count(text[:end]), text[start:end]) for kind, start, end in spans_of(row)
        ]
        assert [(span.label, span.start, span.end, span.text) for span in result.spans] == expected
