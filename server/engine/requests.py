"""Converts requests to vLLM's types, and vLLM's outputs to ours.

vLLM checks a request when it receives it, on the event loop, where its refusals can't be told from other errors. Here
the check is made before, on its own, so that only refusals become RequestRefused. vLLM's check of a constraint may take
long and can't be interrupted, so it is left out: `text/constraints.py` has checked it, in a process of its own.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from tuneserve.server.engine.interface import (
    Alternative,
    Delta,
    Encoded,
    EngineFailed,
    Logprob,
    PoolTask,
    RequestRefused,
    Sampling,
    StructuredOutput,
)
from tuneserve.server.turns import in_turns

# The callers' names of sampling fields, where vLLM has another name.
_FIELDS = {"include_stop_str_in_output": "include_stop_text", "structured_outputs": "structured_output"}
_KNOWN = {field.name for field in fields(Sampling)} - {"structured"}
_STRUCTURED = "structured_output"
# The sum of all item counts in one schema. llguidance unrolls them: a billion items abort its process, and ten thousand
# take 50 MB.
_MAX_ITEMS = 10_000
_COUNTS = ("minItems", "maxItems")
# vLLM's older versions can't be asked for the first token and the rest: then all output comes at once.
_HAS_INTERVAL = hasattr(SamplingParams, "stream_interval")


class _Params(SamplingParams):  # type: ignore[misc]
    """Verified parameters: vLLM's second check is skipped."""

    def verify(self, *_: Any, **__: Any) -> None:
        """Does nothing."""


class _Pooling(PoolingParams):  # type: ignore[misc]
    """Parameters used for one text only: vLLM's deep copy is skipped."""

    def clone(self) -> PoolingParams:
        """Returns itself."""
        return self


def pooling_params(encoded: Encoded, task: PoolTask) -> PoolingParams:
    """Returns vLLM's parameters for one text: without activation, so it returns logits, or a vector that is not
    normalized.
    """
    params = _Pooling(task=task, use_activation=False)
    if encoded.pair_start is not None:
        params.extra_kwargs = {"compressed_token_type_ids": encoded.pair_start}
    return params


def sampling_params(
    sampling: Sampling, stream: bool, verify: Callable[[SamplingParams], None], tells_first: bool = False
) -> SamplingParams:
    """Returns vLLM's parameters: for all output at once if `stream` is false, or with `tells_first` for the first token
    and the rest. `verify` is vLLM's check for this model. Raises RequestRefused.
    """
    tells_first = tells_first and _HAS_INTERVAL
    with _refusing():
        params = _Params(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            stop=list(sampling.stop),
            stop_token_ids=list(sampling.stop_token_ids),
            min_tokens=sampling.min_tokens,
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            prompt_logprobs=sampling.prompt_logprobs,
            logit_bias=dict(sampling.logit_bias) or None,
            allowed_token_ids=list(sampling.allowed_token_ids) or None,
            bad_words=list(sampling.bad_words),
            include_stop_str_in_output=sampling.include_stop_text,
            skip_special_tokens=sampling.skip_special_tokens,
            output_kind=RequestOutputKind.DELTA if stream or tells_first else RequestOutputKind.FINAL_ONLY,
            **({"stream_interval": sampling.max_tokens + 1} if tells_first else {}),
            # A placeholder for the constraint: vLLM must not read the real one here.
            structured_outputs=StructuredOutputsParams(regex="a") if sampling.structured else None,
        )
        verify(params)
    if sampling.structured:
        _set_structured(params, sampling.structured)
    return params


def _set_structured(params: SamplingParams, structured: StructuredOutput) -> None:
    """Replaces the placeholder by the constraint, for the library that vLLM chose when it verified."""
    checked = params.structured_outputs
    try:
        params.structured_outputs = _structured(structured)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(_STRUCTURED) from error
    params.structured_outputs._backend = checked._backend
    params.structured_outputs._backend_was_auto = checked._backend_was_auto


def _structured(structured: StructuredOutput) -> StructuredOutputsParams:
    if structured.kind != "json":
        if structured.kind == "grammar" and "%json" in structured.value:
            raise ValueError("a schema inside a grammar")
        value = list(structured.value) if structured.kind == "choice" else structured.value
        return StructuredOutputsParams(**{structured.kind: value})
    assert isinstance(structured.value, str)
    schema = json.loads(structured.value)
    if not isinstance(schema, dict):
        raise ValueError("not an object")
    counts = list(_counts(schema))
    # No negative count or NaN, which would lower the sum.
    if not all(count >= 0 for count in counts) or sum(counts) > _MAX_ITEMS:
        raise ValueError("too many items")
    # Serialized again, so that no key is there twice.
    return StructuredOutputsParams(json=json.dumps(schema)) if schema else StructuredOutputsParams(json_object=True)


def _counts(value: Any) -> Iterator[float]:
    """Yields the item counts of a schema, at any depth."""
    if isinstance(value, dict):
        yield from (value[key] for key in _COUNTS if isinstance(value.get(key), int | float))
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _counts(inner)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns vLLM's refusals into RequestRefused with the field, if vLLM named it; drops the text, which may repeat the
    prompt.
    """
    try:
        yield
    # Before 0.27 some checks raise the bare type.
    except (VLLMValidationError, ValueError) as error:
        name = getattr(error, "parameter", None) or ""
        name = _FIELDS.get(name, name)
        raise RequestRefused(name if name in _KNOWN else "") from error


def prompt(token_ids: Sequence[int], salt: str) -> Any:
    """Returns a prompt of token ids, which vLLM uses without further work on the event loop. Only prompts with the same
    salt share vLLM's prefix cache.
    """
    return tokens_input(list(token_ids), cache_salt=salt or None)


async def delta(completion: CompletionOutput, output: RequestOutput, sampling: Sampling) -> Delta:
    """Returns the new part of one completion. Raises RequestRefused or EngineFailed if it failed."""
    token_ids = list(completion.token_ids)
    finish = completion.finish_reason
    if finish == "error" and sampling.structured:
        # The constraint could not be compiled for this vocabulary, or it allowed no token.
        raise RequestRefused(_STRUCTURED)
    if finish in ("abort", "error"):
        raise EngineFailed("generation was aborted")
    stopped_by = completion.stop_reason
    prompt_logprobs: Sequence[Logprob] = ()
    if output.prompt_logprobs and output.prompt_token_ids:
        # The first prompt token has no logprob: nothing comes before it.
        prompt_logprobs = await _logprobs(
            output.prompt_token_ids[1:], output.prompt_logprobs[1:], sampling.prompt_logprobs
        )
    return Delta(
        index=0,
        text=completion.text,
        token_ids=token_ids,
        logprobs=await _logprobs(token_ids, completion.logprobs, sampling.logprobs) if completion.logprobs else (),
        finish=finish if finish is None or finish == "length" else "stop",
        stop_text=stopped_by if isinstance(stopped_by, str) else "",
        stop_token_id=stopped_by if isinstance(stopped_by, int) else None,
        prompt_logprobs=prompt_logprobs,
    )


def joined(first: Delta, rest: Delta) -> Delta:
    """Returns two pieces of one completion as one."""
    return replace(
        rest,
        text=first.text + rest.text,
        token_ids=[*first.token_ids, *rest.token_ids],
        logprobs=[*first.logprobs, *rest.logprobs],
        prompt_logprobs=first.prompt_logprobs,
    )


async def _logprobs(token_ids: Sequence[int], positions: Sequence[Any], likeliest: int | None) -> list[Logprob]:
    """Returns one entry a position. vLLM gives a dict by token id: the `likeliest` best tokens, and the actual one."""
    entries = []
    async for token_id, candidates in in_turns(zip(token_ids, positions, strict=False)):
        by_rank = sorted(candidates.items(), key=lambda item: item[1].rank or 0)[:likeliest]
        alternatives = [Alternative(id_, entry.logprob, entry.decoded_token or "") for id_, entry in by_rank]
        entries.append(Logprob(token_id, candidates[token_id].logprob, alternatives))
    return entries
