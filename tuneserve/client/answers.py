"""Converts the server's messages to results."""

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any

from tuneserve.client import errors, results
from tuneserve.client.results import Results
from tuneserve.v1 import (
    checkpoint_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    model_admin_pb2,
    model_pb2,
    monitor_pb2,
)


def classifications(response: classification_pb2.ClassifyResponse) -> Results[results.Classification]:
    """One result per text."""
    return _results(response, map(_classification, response.results))


def streamed(response: classification_pb2.ClassifyStreamResponse) -> results.StreamedClassification:
    """The answer to one text of a stream."""
    if response.HasField("error"):
        return results.StreamedClassification(response.id, None, errors.of_status(response.error))
    return results.StreamedClassification(response.id, classifications(response.response), None)


def observed(response: monitor_pb2.ObserveStreamResponse) -> results.StreamedObservation:
    """The answer to one text of a stream."""
    if response.HasField("error"):
        return results.StreamedObservation(response.id, None, errors.of_status(response.error))
    one = response.observation
    found = results.Observation(
        topics=_labels(one.topics),
        sentiment=results.LabelScore(one.sentiment.label, one.sentiment.score),
        truncated=one.truncated,
        usage=_usage(one),
        topic_model_version=one.topic_model_version,
        sentiment_model_version=one.sentiment_model_version,
    )
    return results.StreamedObservation(response.id, found, None)


def examples(response: monitor_pb2.ExamplesResponse) -> list[results.Example]:
    """The last texts, the newest first."""
    return [results.Example(one.text, one.time.ToDatetime(UTC)) for one in response.examples]


def entities(response: classification_pb2.ClassifyTokensResponse) -> Results[results.Entities]:
    """One result per text."""
    return _results(response, map(_entities, response.results))


def ranked(candidates: Sequence[str], response: classification_pb2.RankResponse) -> Results[results.RankedCandidate]:
    """Candidates, best first."""
    found = (results.RankedCandidate(one.index, one.score, candidates[one.index]) for one in response.results)
    return _results(response, found)


def embeddings(response: embedding_pb2.EmbedResponse) -> Results[results.Embedding]:
    """One result per text."""
    found = (results.Embedding(tuple(one.values), one.token_count, one.truncated) for one in response.results)
    return _results(response, found)


def generation(response: generation_pb2.GenerateResponse) -> results.Generation:
    """All completions of a prompt."""
    return results.Generation(
        completions=tuple(map(_completion, response.completions)),
        usage=_usage(response),
        model_version=response.model_version,
        prompt_logprobs=_logprobs(response.prompt_logprobs),
    )


def tokens(response: generation_pb2.TokenizeResponse) -> results.Tokens:
    """The tokens of a prompt."""
    found = (results.Token(token.id, token.start, token.end) for token in response.tokens)
    return results.Tokens(tuple(found), response.text, response.model_version)


def models(response: model_pb2.ListModelsResponse) -> tuple[list[results.Model], str]:
    """A page of models, and the token of the next page; empty after the last."""
    return [_model(model) for model in response.models], response.next_page_token


def aliases(response: model_pb2.ListAliasesResponse) -> tuple[list[results.Alias], str]:
    """A page of aliases, and the token of the next page; empty after the last."""
    return [_alias(alias) for alias in response.aliases], response.next_page_token


def model(response: model_admin_pb2.LoadModelResponse | model_pb2.WatchModelResponse) -> results.Model:
    """A version as it is now."""
    return _model(response.model)


def adapter(response: model_admin_pb2.LoadAdapterResponse) -> results.Adapter:
    """The adapter that was loaded."""
    return results.Adapter(response.adapter.name, response.adapter.version)


def alias(response: model_admin_pb2.SetAliasResponse) -> results.Alias:
    """The alias as it is now."""
    return _alias(response.alias)


def nothing(response: Any) -> None:
    """For an answer without content."""


class GenerationParts:
    """A completion that arrives in parts."""

    def __init__(self) -> None:
        self._joined = generation_pb2.GenerateResponse()
        self._joined.completions.add()
        self._texts, self._reasoning = list[str](), list[str]()
        self._calls: dict[int, generation_pb2.ToolCall] = {}

    def add(self, part: generation_pb2.GenerateStreamResponse) -> str:
        """Adds a part; returns its text."""
        self._joined.usage.MergeFrom(part.usage)
        self._joined.model_version = part.model_version or self._joined.model_version
        for completion in part.completions:
            # Appends repeated fields such as tokens, and overwrites other fields that are set.
            self._joined.completions[0].MergeFrom(completion)
            self._reasoning.append(completion.reasoning)
            for call in completion.tool_calls:
                known = self._calls.setdefault(call.index, generation_pb2.ToolCall(index=call.index))
                arguments = known.arguments + call.arguments
                known.MergeFrom(call)
                known.arguments = arguments
        text = "".join(completion.text for completion in part.completions)
        self._texts.append(text)
        return text

    def joined(self) -> generation_pb2.GenerateResponse:
        """Returns everything received so far as one answer."""
        completion = self._joined.completions[0]
        completion.text, completion.reasoning = "".join(self._texts), "".join(self._reasoning)
        del completion.tool_calls[:]
        completion.tool_calls.extend(self._calls.values())
        return self._joined


def _results(response: Any, items: Iterable[results.T]) -> Results[results.T]:
    return Results(tuple(items), _usage(response), response.model_version)


def _usage(response: Any) -> results.Usage:
    return results.Usage(response.usage.prompt_tokens, response.usage.completion_tokens)


def _classification(one: classification_pb2.Classification) -> results.Classification:
    return results.Classification(
        labels=_labels(one.labels),
        token_count=one.token_count,
        truncated=one.truncated,
        windows=one.windows,
        weights=tuple(results.WordWeight(word.text, word.start, word.end, word.weight) for word in one.weights),
    )


def _labels(labels: Iterable[classification_pb2.LabelScore]) -> tuple[results.LabelScore, ...]:
    return tuple(results.LabelScore(label.label, label.score) for label in labels)


def _entities(one: classification_pb2.TokenClassification) -> results.Entities:
    spans = (results.Entity(span.label, span.score, span.start, span.end, span.text) for span in one.spans)
    return results.Entities(tuple(spans), one.token_count, one.truncated)


def _completion(one: generation_pb2.Completion) -> results.Completion:
    return results.Completion(
        index=one.index,
        text=one.text,
        token_ids=tuple(one.token_ids),
        reasoning=one.reasoning,
        tool_calls=tuple(results.ToolCall(call.id, call.name, call.arguments) for call in one.tool_calls),
        # "tool_calls", as in other APIs.
        finish_reason=word(generation_pb2.FinishReason, "FINISH_REASON_", one.finish_reason).replace("-", "_"),
        stop_text=one.stop_text,
        stop_token_id=one.stop_token_id if one.HasField("stop_token_id") else None,
        logprobs=_logprobs(one.logprobs),
    )


def _logprobs(entries: Iterable[generation_pb2.TokenLogprob]) -> tuple[results.TokenLogprob, ...]:
    return tuple(
        results.TokenLogprob(
            entry.token_id,
            entry.logprob,
            tuple(results.TokenAlternative(one.token_id, one.logprob, one.text) for one in entry.alternatives),
        )
        for entry in entries
    )


def _model(model: model_pb2.Model) -> results.Model:
    limits = model.limits
    return results.Model(
        name=model.name,
        version=model.version,
        id=model.id,
        task=word(checkpoint_pb2.Task, "TASK_", model.task),
        state=word(model_pb2.ModelState, "MODEL_STATE_", model.state),
        load_step=word(model_pb2.LoadStep, "LOAD_STEP_", model.load_step),
        failure=model.failure,
        quantization=model.quantization,
        labels=tuple(model.labels),
        adapters=tuple(adapter.name for adapter in model.adapters),
        limits=results.Limits(limits.max_length, limits.max_inputs, limits.max_queue, limits.max_explained_words),
    )


def _alias(alias: model_pb2.Alias) -> results.Alias:
    targets = (results.AliasTarget(target.model, target.weight) for target in alias.targets)
    return results.Alias(alias.name, tuple(targets), alias.shadow, alias.etag)


def word(enum: Any, prefix: str, value: int) -> str:
    """Returns the name of an enum's value as a word: TASK_SEQUENCE_CLASSIFICATION is sequence-classification."""
    if value == 0:
        return ""
    known = enum.DESCRIPTOR.values_by_number.get(value)
    # A newer server may have more values.
    return known.name.removeprefix(prefix).lower().replace("_", "-") if known else str(value)
