"""Sends labelled rows to a served model, over gRPC like any caller, and computes metrics from the answers.

    sequence classification   every row once, in batches: accuracy and texts a second
    token classification      the same: entity F1 of the spans
    embedding                 every query and passage once, in batches: nDCG of each query's search among all passages
    ranking                   each query with the passages of its shortlist: nDCG of each query's ranking
    generation                every answer scored token by token: perplexity, and the win rate of preferences; then
                              greedy answers, compared with the expected ones: token F1; then, separately, greedy
                              generation for PROMPTS prompts at once, NEW_TOKENS tokens each: output tokens a second,
                              prompt processing included

After that, some single calls one at a time: their latency. Timed prompts are sent only once, because the server would
answer a repeated one from its prefix cache (see `_unseen`).

Knows nothing of engines or of how the server was started.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import grpc
import numpy as np
from google.protobuf import json_format
from tqdm import tqdm

from tuneserve import checkpoint
from tuneserve.checkpoint import encoders
from tuneserve.checkpoint.entities import Span, spans_of
from tuneserve.checkpoint.examples import Example, example
from tuneserve.checkpoint.rows import Row
from tuneserve.client.endpoint import Endpoint
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluation import answers, preferences, quality
from tuneserve.evaluation.latency import Latency, latency
from tuneserve.evaluation.retrieval import Library, search
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import classification_pb2, common_pb2, embedding_pb2, generation_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

T = TypeVar("T")
R = TypeVar("R")

# The name that the model is served under while it is measured.
MODEL = "m"
BATCH = 64
# Calls in flight: enough that the engine never waits for the next batch.
CALLS = 4
# Generation: concurrent prompts, and new tokens of each.
PROMPTS, NEW_TOKENS = 32, 64
# Texts classified one at a time; prompts answered one at a time, and new tokens of each.
SINGLE_TEXTS, SINGLE_PROMPTS, SINGLE_TOKENS = 50, 20, 16
# Texts of a measurement of speed alone.
SPEED_TEXTS = 512
# Tokens at the start of a prompt that are changed to make it a new one.
_UNSEEN = 12
# Rows whose generated answers are compared with the expected ones: the largest cost of a measurement.
ANSWERED = 200
# No call takes this long; with a hung engine the measurement fails instead of hanging, too.
CALL_SECONDS = 600.0
_HINTS = {
    "UNAVAILABLE": "engines also end when memory runs out: free some, and try again",
    "DEADLINE_EXCEEDED": "the machine is too slow, or too busy: fewer rows (--data), or less beside it",
    "RESOURCE_EXHAUSTED": "the machine is too slow, or too busy: fewer rows (--data), or less beside it",
}


@dataclass(frozen=True)
class Measurement:
    """The results on one set of rows."""

    metrics: dict[str, float]
    rows: int
    # Time for the rows, without the engine's start.
    seconds: float
    throughput: float
    unit: Literal["texts/s", "tokens/s"]
    # The predicted label, labels, entities or passage of each row, for comparing two checkpoints. Empty for generation.
    predictions: list[Any] = field(default_factory=list, repr=False)
    # The terms of the headline metric, row by row, for `significance`.
    row_sums: quality.RowSums = field(default_factory=list, repr=False)
    # Latency of one text, or of SINGLE_TOKENS tokens of an answer.
    latency: Latency | None = None
    # Resident memory of the server with its engine, the KV cache included; None if not measured.
    memory_bytes: int | None = None


def measure_at(address: str, manifest: pb.Checkpoint, rows: Sequence[Row], directory: Path) -> Measurement:
    """Measures the model named MODEL of the server at `address` (host:port), which serves `directory`."""
    with calling(address) as channel:
        if manifest.task == pb.TASK_GENERATION:
            return _measure_generation(channel, manifest, rows, directory)
        by_task = {
            pb.TASK_TOKEN_CLASSIFICATION: _measure_tagging,
            pb.TASK_EMBEDDING: _measure_retrieval,
            pb.TASK_RANKING: _measure_ranking,
        }
        return by_task.get(manifest.task, _measure_classification)(channel, manifest, rows)


def speed_at(address: str, manifest: pb.Checkpoint, rows: Sequence[Row], directory: Path) -> float:
    """Measures only the same model's speed, in texts or tokens per second; takes some seconds."""
    if manifest.task != pb.TASK_GENERATION:
        return measure_at(address, manifest, list(map(_unseen_text, rows[:SPEED_TEXTS])), directory).throughput
    with calling(address) as channel:
        service, limit = GenerationServiceStub(channel), limits(channel).max_length
        tokenizer, length = load_tokenizer(directory), example_length(manifest, limit)
        new = min(NEW_TOKENS, limit // 2)
        ready = _prompts_of([example(tokenizer, row, length) for row in rows[:PROMPTS]], limit, new)
        return _tokens_per_second(service, ready, new)


@contextmanager
def calling(address: str) -> Iterator[grpc.Channel]:
    """Yields a channel to a server of ours. Raises StepFailed for every error status."""
    try:
        with Endpoint(address, CALL_SECONDS).open() as channel:
            yield channel
    except grpc.RpcError as error:
        code = error.code().name
        raise StepFailed(f"the server answered {code}: {error.details()}", _HINTS.get(code, "")) from error


def answer_log_likelihood(
    counted: Sequence[bool], logprobs: Sequence[generation_pb2.TokenLogprob]
) -> tuple[float, int]:
    """Returns the log-likelihood in nats of the tokens that count, and their number.

    `logprobs` has an entry for each of an example's tokens but the first.
    """
    found = [entry.logprob for entry, counts in zip(logprobs, counted[1:], strict=True) if counts]
    return sum(found), len(found)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yields `items` in order, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _measure_classification(channel: grpc.Channel, manifest: pb.Checkpoint, rows: Sequence[Row]) -> Measurement:
    classify = partial(_classify, channel)
    answers, seconds = _timed_batches(channel, classify, rows)
    single = latency(lambda row: classify([_unseen_text(row)]), rows[:SINGLE_TEXTS])
    predictions: list[Any]
    if manifest.problem_type == pb.PROBLEM_TYPE_REGRESSION:
        # Regressions have no labels to compare: a slightly different number is not another answer.
        predictions = []
        numbers = [row["label"] for row in rows], [answer[0][1] for answer in answers]
        metrics, sums = quality.regression(*numbers), quality.number_rows(*numbers)
    elif manifest.problem_type == pb.PROBLEM_TYPE_MULTI_LABEL:
        predictions = [sorted(label for label, score in answer if score >= 0.5) for answer in answers]
        expected = [sorted(row["labels"]) for row in rows]
        metrics = quality.multi_label(expected, predictions, manifest.labels)
        scores = [
            (score, label in row["labels"]) for row, one in zip(rows, answers, strict=True) for label, score in one
        ]
        metrics["calibration_error"] = quality.calibration_error(*zip(*scores, strict=True))
        sums = quality.right_rows(expected, predictions)
    else:
        predictions, labels = [answer[0][0] for answer in answers], [row["label"] for row in rows]
        metrics = quality.sequence_classification(labels, predictions, manifest.labels)
        sums = quality.right_rows(labels, predictions)
        confidence = [answer[0][1] for answer in answers]
        metrics["calibration_error"] = quality.calibration_error(confidence, [right > 0 for right, _ in sums])
    return Measurement(metrics, len(rows), seconds, len(rows) / seconds, "texts/s", predictions, sums, single)


def _classify(channel: grpc.Channel, batch: Sequence[Row], raw_scores: bool = False) -> list[list[tuple[str, float]]]:
    inputs = [classification_pb2.ClassifyInput(text=row["text"], text_pair=row.get("text_pair")) for row in batch]
    request = classification_pb2.ClassifyRequest(
        model=MODEL, inputs=inputs, raw_scores=raw_scores, truncation=common_pb2.TRUNCATION_END
    )
    results = ClassificationServiceStub(channel).Classify(request, timeout=CALL_SECONDS).results
    return [[(entry.label, entry.score) for entry in result.labels] for result in results]


def _measure_tagging(channel: grpc.Channel, manifest: pb.Checkpoint, rows: Sequence[Row]) -> Measurement:
    call = ClassificationServiceStub(channel).ClassifyTokens

    def tag(batch: Sequence[Row]) -> list[list[Span]]:
        request = classification_pb2.ClassifyTokensRequest(
            model=MODEL,
            texts=[row["text"] for row in batch],
            aggregation=classification_pb2.AGGREGATION_FIRST,
            offset_unit=common_pb2.OFFSET_UNIT_CODE_POINT,
            truncation=common_pb2.TRUNCATION_END,
        )
        results = call(request, timeout=CALL_SECONDS).results
        return [[(span.label, span.start, span.end) for span in result.spans] for result in results]

    predictions, seconds = _timed_batches(channel, tag, rows)
    single = latency(lambda row: tag([_unseen_text(row)]), rows[:SINGLE_TEXTS])
    expected = list(map(spans_of, rows))
    metrics, sums = quality.token_classification(expected, predictions), quality.entity_rows(expected, predictions)
    return Measurement(metrics, len(rows), seconds, len(rows) / seconds, "texts/s", predictions, sums, single)


def _measure_retrieval(channel: grpc.Channel, manifest: pb.Checkpoint, rows: Sequence[Row]) -> Measurement:
    library, call = Library.of(rows), EmbeddingServiceStub(channel).Embed
    query, passage = (encoders.prompt(manifest.prompts, names) for names in (encoders.QUERY, encoders.PASSAGE))
    texts = [{"text": query + text} for text in library.queries]
    texts += [{"text": passage + text} for text in library.passages]

    def embed(batch: Sequence[Row]) -> list[Sequence[float]]:
        request = embedding_pb2.EmbedRequest(
            model=MODEL, texts=[row["text"] for row in batch], truncation=common_pb2.TRUNCATION_END
        )
        return [list(result.values) for result in call(request, timeout=CALL_SECONDS).results]

    vectors, seconds = _timed_batches(channel, embed, texts)
    single = latency(lambda row: embed([_unseen_text(row)]), texts[:SINGLE_TEXTS])
    found = search(*np.split(np.asarray(vectors), [len(library.queries)]))
    return _of_search(library, found, seconds, len(texts) / seconds, single)


def _measure_ranking(channel: grpc.Channel, manifest: pb.Checkpoint, rows: Sequence[Row]) -> Measurement:
    library = Library.of(rows)
    pairs = [{"text": query, "text_pair": passage} for query, passage in library.pairs]
    # Raw, because probabilities near 1 would be equal.
    classify = partial(_classify, channel, raw_scores=True)
    answers, seconds = _timed_batches(channel, classify, pairs)
    single = latency(lambda row: classify([_unseen_text(row)]), pairs[:SINGLE_TEXTS])
    found = library.ranked(answer[0][1] for answer in answers)
    return _of_search(library, found, seconds, len(pairs) / seconds, single)


def _of_search(
    library: Library, found: Sequence[Sequence[int]], seconds: float, throughput: float, single: Latency
) -> Measurement:
    metrics, sums = quality.retrieval(library.right(found), library.relevant)
    predictions = [library.passages[places[0]] for places in found]
    return Measurement(metrics, len(sums), seconds, throughput, "texts/s", predictions, sums, single)


def _measure_generation(
    channel: grpc.Channel, manifest: pb.Checkpoint, rows: Sequence[Row], directory: Path
) -> Measurement:
    service, limit = GenerationServiceStub(channel), limits(channel).max_length
    # Tokenized here: the server can't say where an answer to a text prompt begins, or which token ends it.
    tokenizer = load_tokenizer(directory)

    def score(asked: Example) -> tuple[float, int]:
        return answer_log_likelihood(
            asked.counted, _generate(service, asked.ids, max_tokens=1, prompt_logprobs=0).prompt_logprobs
        )

    length, both = example_length(manifest, limit), preferences.sides(rows)
    asked, others = ([example(tokenizer, row, length) for row in side] for side in (both.good, both.bad))
    started = time.perf_counter()
    scores = _spread(score, asked, PROMPTS)
    seconds = time.perf_counter() - started
    tokens = sum(count for _, count in scores)
    if not tokens:
        raise UserError("the rows' answers have no tokens", "check how the chat template renders them")
    metrics = quality.generation(sum(total for total, _ in scores), tokens)
    if asked and others:
        worse = _spread(score, others, PROMPTS)
        metrics["win_rate"] = preferences.win_rate(
            preferences.Sides(scores, worse), any("rejected" in row for row in rows)
        )

    new, names = min(NEW_TOKENS, limit // 2), answers.chosen(manifest)
    most = max(new, answers.room(asked[:ANSWERED], limit)) if names else new
    ready = _prompts_of(asked[:ANSWERED], limit, most)
    given = _spread(lambda ids: _generate(service, ids, max_tokens=most).completions, ready, PROMPTS)
    texts = [completions[0].text if completions else "" for completions in given]
    expected = [quality.expected_answer(row) for row in both.good[:ANSWERED]]
    metrics |= quality.answers(expected, texts) | answers.measure(names, expected, texts)

    ready = _prompts_of(asked[:PROMPTS], limit, new)
    throughput, sums = _tokens_per_second(service, ready, new), [[total, float(count)] for total, count in scores]
    few, asked_once = min(new, SINGLE_TOKENS), iter(_unseen(ready, SINGLE_PROMPTS + 1))
    single = latency(
        lambda _: _generate(service, next(asked_once), max_tokens=few, ignore_eos=True), range(SINGLE_PROMPTS)
    )
    return Measurement(metrics, len(asked), seconds, throughput, "tokens/s", row_sums=sums, latency=single)


def _generate(service: GenerationServiceStub, ids: Sequence[int], **sampling: Any) -> generation_pb2.GenerateResponse:
    request = generation_pb2.GenerateRequest(
        model=MODEL,
        prompt=generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids)),
        sampling=generation_pb2.SamplingParams(temperature=0, **sampling),
    )
    response: generation_pb2.GenerateResponse = service.Generate(request, timeout=CALL_SECONDS)
    return response


def _prompts_of(asked: Sequence[Example], limit: int, new: int) -> list[list[int]]:
    return [one.ids[: one.start][-(limit - new) :] for one in asked]


def _unseen(ready: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Returns `count` prompts, each as long as one of the given ones, that no server has seen.

    Their first tokens are replaced by random ones of their own tokens: a prefix cache compares whole blocks of 16
    tokens or more, from the first token on.
    """
    seen = sorted({token for ids in ready for token in ids})
    chosen = itertools.islice(itertools.cycle(ready), count)
    return [[*random.choices(seen, k=min(_UNSEEN, len(ids))), *ids[_UNSEEN:]] for ids in chosen]


def _unseen_text(row: Row) -> Row:
    """Returns the row with a random number before its texts, which no server has seen; its answer is not used."""
    number = random.randrange(10**7, 10**8)
    return row | {key: f"{number} {row[key]}" for key in ("text", "query", "positive") if key in row}


def _tokens_per_second(service: GenerationServiceStub, ready: Sequence[Sequence[int]], new: int) -> float:
    given = _unseen(ready, PROMPTS)
    started = time.perf_counter()
    answers = _spread(lambda ids: _generate(service, ids, max_tokens=new, ignore_eos=True), given, PROMPTS)
    return sum(answer.usage.completion_tokens for answer in answers) / (time.perf_counter() - started)


def prompts(row: Row) -> tuple[generation_pb2.Prompt, generation_pb2.Prompt | None]:
    """Returns a row's prompt, and the prompt with its answer; the second only for conversations, because the answer to
    a text prompt is tokenized separately.
    """
    if "prompt" in row:
        return generation_pb2.Prompt(text=row["prompt"]), None
    given: Row = {key: row[key] for key in ("messages", "tools", "documents") if key in row}
    chat = json_format.ParseDict(given, generation_pb2.Chat())
    question = generation_pb2.Chat(
        messages=chat.messages[:-1], tools=chat.tools, documents=chat.documents, add_generation_prompt=True
    )
    chat.add_generation_prompt = False
    return generation_pb2.Prompt(chat=question), generation_pb2.Prompt(chat=chat)


def _timed_batches(
    channel: grpc.Channel, call: Callable[[Sequence[Row]], list[R]], rows: Sequence[Row]
) -> tuple[list[R], float]:
    work = list(batches(rows, min(BATCH, limits(channel).max_inputs or BATCH)))
    # The first batch of a size is slower, because kernels are chosen; callers of a running server don't see that.
    call(list(map(_unseen_text, work[0])))
    started = time.perf_counter()
    answers = _spread(call, work, CALLS)
    seconds = time.perf_counter() - started
    return [answer for batch in answers for answer in batch], seconds


def _spread(call: Callable[[T], R], work: Sequence[T], at_once: int) -> list[R]:
    with ThreadPoolExecutor(at_once) as pool:
        try:
            return list(tqdm(pool.map(call, work), total=len(work), desc="measuring", leave=False))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def example_length(manifest: pb.Checkpoint, limit: int) -> int:
    """Returns the length that rows of generation are truncated to: as in training, if that fits into the served
    `limit`.

    Every call needs room for one generated token.
    """
    return min(checkpoint.trained_length(manifest) or manifest.max_length or limit, limit - 1)


def load_tokenizer(directory: Path, **options: Any) -> Any:
    """Returns the tokenizer of a checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, **options)


def limits(channel: grpc.Channel, name: str = MODEL) -> model_pb2.Limits:
    """Returns the bounds of one call to a served model."""
    request = model_pb2.GetModelRequest(model=name)
    found: model_pb2.Limits = ModelServiceStub(channel).GetModel(request, timeout=CALL_SECONDS).model.limits
    return found
