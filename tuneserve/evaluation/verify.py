"""Checks that a served checkpoint answers as transformers does, with the same inputs through both.

    ranking               the score of each query's pair
    classification        the best label of each text, and every score
    token classification  the entities of each text, and their scores
    embedding             the cosine of the two vectors of each text; the difference is what it lacks to 1
    generation            the token ids of each prompt, and the log probability of each token of it and its answer

A classifier's temperature is left out of both: the raw outputs are compared, as probabilities. transformers computes in
float32, the engine in the checkpoint's own dtype. So labels may differ only if two of them are nearly equal.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tuneserve import checkpoint
from tuneserve.checkpoint import encoders, entities
from tuneserve.checkpoint.examples import answer, example
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import auto_class
from tuneserve.errors import StepFailed
from tuneserve.evaluation import measurement
from tuneserve.evaluation.evaluate import check_rows, held_out_rows
from tuneserve.serving import serving
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import classification_pb2, common_pb2, embedding_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

logger = logging.getLogger(__name__)

ROWS = 64
# Two labels whose probabilities differ by no more than this are a tie.
TOLERANCE = 0.05
# The differences that rounding explains, mean and maximum: of probabilities, and of log probabilities in nats. Seen:
# 0.05 nats in the mean for a small model in bf16, 0.2 when one of its layers was halved.
_PROBABILITIES = (0.01, 0.25)
_LIMITS = {
    pb.TASK_GENERATION: (0.1, 1.0),
    # Of cosines. Another pooling is 0.07 and more away.
    pb.TASK_EMBEDDING: (0.005, 0.05),
}
_BATCH = 16
# Inputs for checkpoints that keep no rows; only the agreement of the answers counts.
_TEXTS = (
    "The film was good, and the acting was better.",
    "Angela Merkel was born in Hamburg in 1954.",
    "ok",
    "A story about nothing at all, told twice: once too often.",
    "Ünïcödé, 東京 and 🙂 are text, too.",
)


@dataclass(frozen=True)
class Verdict:
    """How far the answers of server and transformers are apart."""

    inputs: int
    different: int  # inputs with a different label, tags or token ids that no near tie explains
    largest: float  # largest difference of scores: probabilities, a regression's numbers, log probabilities in nats
    typical: float  # mean difference of scores
    limits: tuple[float, float]  # allowed `typical` and `largest`

    @property
    def is_good(self) -> bool:
        """Whether rounding explains all differences."""
        return not self.different and self.typical <= self.limits[0] and self.largest <= self.limits[1]


def verify(directory: Path, rows: Sequence[Row] | None = None) -> Verdict:
    """Serves a checkpoint and compares its answers with those of transformers; prints the result.

    `rows`: by default the first held-out ones, or a few sentences if there are none. Raises StepFailed if the two
    differ by more than rounding.
    """
    manifest = checkpoint.load(directory)
    if rows is None:
        rows = held_out_rows(directory, manifest)[:ROWS] if manifest.test_split.path else sentences(manifest)
    check_rows(manifest, rows)
    logger.info("starting the server")
    with serving({measurement.MODEL: directory}) as addresses:
        verdict = verify_at(addresses.grpc, measurement.MODEL, directory, manifest, rows)
    print(f"{verdict.inputs} inputs: {verdict.different} answered differently from transformers")
    print(f"scores differ by {verdict.typical:.4f} in the mean, by {verdict.largest:.4f} at most")
    if not verdict.is_good:
        raise StepFailed(
            f"{directory}: its answers in the server differ from those in transformers",
            "was it trained with another version of a library, or does it need code of its own?",
        )
    return verdict


def verify_at(address: str, name: str, directory: Path, manifest: pb.Checkpoint, rows: Sequence[Row]) -> Verdict:
    """Compares the model `name` of the server at `address` with transformers on `directory`, which it serves."""
    by_task = {
        pb.TASK_SEQUENCE_CLASSIFICATION: _texts,
        pb.TASK_TOKEN_CLASSIFICATION: _words,
        pb.TASK_GENERATION: _answers,
        pb.TASK_EMBEDDING: _vectors,
        pb.TASK_RANKING: _pairs,
    }
    with measurement.calling(address) as channel:
        found = list(by_task[manifest.task](channel, name, directory, manifest, rows))
    differences = [difference for _, several in found for difference in several]
    return Verdict(
        len(found),
        sum(not same for same, _ in found),
        max(differences, default=0.0),
        sum(differences) / max(1, len(differences)),
        _LIMITS.get(manifest.task, _PROBABILITIES),
    )


# For each input: whether the answers are the same, and the differences of the scores.
_Found = Iterator[tuple[bool, list[float]]]


def _texts(channel: grpc.Channel, name: str, directory: Path, manifest: pb.Checkpoint, rows: Sequence[Row]) -> _Found:
    import torch

    model, tokenizer = _load(directory, manifest.task, _limit(channel, name))
    for batch in measurement.batches(rows, _BATCH):
        inputs = [classification_pb2.ClassifyInput(text=row["text"], text_pair=row.get("text_pair")) for row in batch]
        request = classification_pb2.ClassifyRequest(
            model=name, inputs=inputs, raw_scores=True, truncation=common_pb2.TRUNCATION_END
        )
        results = ClassificationServiceStub(channel).Classify(request, timeout=measurement.CALL_SECONDS).results
        for row, result in zip(batch, results, strict=True):
            encoded = tokenizer(row["text"], row.get("text_pair"), truncation=True, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**encoded).logits[0].float()
            by_label = {entry.label: entry.score for entry in result.labels}
            served = torch.tensor([by_label[label] for label in manifest.labels])
            yield _compared(_probabilities(logits, manifest), _probabilities(served, manifest), manifest)


def _pairs(channel: grpc.Channel, name: str, directory: Path, manifest: pb.Checkpoint, rows: Sequence[Row]) -> _Found:
    pairs = [{"text": row["query"], "text_pair": row["positive"]} for row in rows]
    return _texts(channel, name, directory, manifest, pairs)


def _compared(ours: Any, served: Any, manifest: pb.Checkpoint) -> tuple[bool, list[float]]:
    if manifest.problem_type == pb.PROBLEM_TYPE_SINGLE_LABEL:
        # If the two best labels are nearly equal, either is accepted.
        same = float(ours.max() - ours[served.argmax()]) <= TOLERANCE
    elif manifest.problem_type == pb.PROBLEM_TYPE_MULTI_LABEL:
        same = not bool((((ours - 0.5).abs() > TOLERANCE) & ((ours > 0.5) != (served > 0.5))).any())
    else:
        # Regressions have numbers of any size, and rounding errors grow with it.
        return True, ((ours - served).abs() / ours.abs().clamp_min(1)).tolist()
    return same, (ours - served).abs().tolist()


def _probabilities(logits: Any, manifest: pb.Checkpoint) -> Any:
    if manifest.problem_type == pb.PROBLEM_TYPE_MULTI_LABEL:
        return logits.sigmoid()
    return logits if manifest.problem_type == pb.PROBLEM_TYPE_REGRESSION else logits.softmax(-1)


def _words(channel: grpc.Channel, name: str, directory: Path, manifest: pb.Checkpoint, rows: Sequence[Row]) -> _Found:
    from transformers import pipeline

    model, tokenizer = _load(directory, manifest.task, _limit(channel, name))
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
    for row in rows:
        text = row["text"]
        request = classification_pb2.ClassifyTokensRequest(
            model=name,
            texts=[text],
            aggregation=classification_pb2.AGGREGATION_SIMPLE,
            truncation=common_pb2.TRUNCATION_END,
        )
        answer = ClassificationServiceStub(channel).ClassifyTokens(request, timeout=measurement.CALL_SECONDS)
        served = {(span.label, span.start, span.end): span.score for span in answer.results[0].spans}
        ours = {
            (one["entity_group"], *entities.trimmed(text, one["start"], one["end"])): float(one["score"])
            for one in tagger(text)
        }
        # If only one of them finds an entity, and is confident of it, rounding does not explain that.
        lonely = [(served | ours)[key] for key in served.keys() ^ ours.keys()]
        same = all(score < 0.5 + TOLERANCE for score in lonely)
        yield same, [abs(served[key] - ours[key]) for key in served.keys() & ours.keys()]


def _vectors(channel: grpc.Channel, name: str, directory: Path, manifest: pb.Checkpoint, rows: Sequence[Row]) -> _Found:
    import torch

    model, tokenizer = _load(directory, manifest.task, _limit(channel, name))
    for prompts, key in ((encoders.QUERY, "query"), (encoders.PASSAGE, "positive")):
        prompt = next((one for one in prompts if one in manifest.prompts), None)
        for batch in measurement.batches(rows, _BATCH):
            texts = [row[key] for row in batch]
            request = embedding_pb2.EmbedRequest(
                model=name, texts=texts, prompt_name=prompt, truncation=common_pb2.TRUNCATION_END
            )
            results = EmbeddingServiceStub(channel).Embed(request, timeout=measurement.CALL_SECONDS).results
            for text, result in zip(texts, results, strict=True):
                whole = encoders.prompt(manifest.prompts, prompts) + text
                encoded = tokenizer(whole, truncation=True, return_tensors="pt")
                with torch.inference_mode():
                    hidden = model(**encoded).last_hidden_state
                ours = encoders.pooled(hidden, encoded["attention_mask"], manifest.pooling)[0]
                served = torch.tensor(list(result.values))
                yield True, [1 - float(torch.cosine_similarity(ours, served, dim=0))]


def _answers(channel: grpc.Channel, name: str, directory: Path, manifest: pb.Checkpoint, rows: Sequence[Row]) -> _Found:
    import torch

    model, tokenizer = _load(directory, manifest.task, _limit(channel, name))
    service = GenerationServiceStub(channel)
    length = measurement.example_length(manifest, measurement.limits(channel, name).max_length)
    for row in rows:
        ids, start = answer(tokenizer, row)
        prompt, whole = measurement.prompts(row)
        same = _tokens(service, name, prompt) == ids[:start]
        if whole is not None:
            # Up to the end of the turn: tokens that a template puts after it are never counted.
            same &= _tokens(service, name, whole)[: len(ids)] == ids
        ids = example(tokenizer, row, length).ids
        request = generation_pb2.GenerateRequest(
            model=name,
            prompt=generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids)),
            sampling=generation_pb2.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0),
        )
        served = service.Generate(request, timeout=measurement.CALL_SECONDS).prompt_logprobs
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        yield same, (expected - torch.tensor([one.logprob for one in served])).abs().tolist()


def _tokens(service: GenerationServiceStub, name: str, prompt: generation_pb2.Prompt) -> list[int]:
    request = generation_pb2.TokenizeRequest(model=name, prompt=prompt)
    return [token.id for token in service.Tokenize(request, timeout=measurement.CALL_SECONDS).tokens]


def _limit(channel: grpc.Channel, name: str) -> int:
    """Returns the served model's maximum length in tokens; longer inputs are truncated to it on both sides."""
    return measurement.limits(channel, name).max_length


def _load(directory: Path, task: pb.Task, limit: int) -> tuple[Any, Any]:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = auto_class(task).from_pretrained(directory, dtype=torch.float32)
    return model.eval(), measurement.load_tokenizer(directory, model_max_length=limit)


def sentences(manifest: pb.Checkpoint) -> list[Row]:
    """Returns rows for a checkpoint that keeps none; their expected answers are not used."""
    if manifest.task == pb.TASK_TOKEN_CLASSIFICATION:
        return [{"text": text, "entities": []} for text in _TEXTS]
    if manifest.task in (pb.TASK_EMBEDDING, pb.TASK_RANKING):
        return [{"query": text, "positive": text} for text in _TEXTS]
    if manifest.task == pb.TASK_GENERATION:
        return [{"prompt": text, "completion": " It was."} for text in _TEXTS]
    label: Any = 0.0 if manifest.problem_type == pb.PROBLEM_TYPE_REGRESSION else manifest.labels[0]
    return [{"text": text, "label": label, "labels": [label]} for text in _TEXTS]
