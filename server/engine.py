"""The engine: vLLM's AsyncLLM behind `seam.Engine`. The only file that knows vLLM (0.26 to 0.32).

It knows token ids and numbers, and nothing of gRPC, texts or labels. Importing it imports torch and vLLM, so the
application does it late, in a thread.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tuneserve.runtime import has_nvidia_gpu
from tuneserve.server.config import ModelConfig
from tuneserve.server.hardware import Hardware
from tuneserve.server.seam import Alternative, Delta, Encoded, EngineFailed, Logprob, RequestRefused, Sampling
from tuneserve.v1 import checkpoint_pb2 as pb

# Must stand before vLLM is imported, which reads them then. Spawned, never forked: gRPC has threads running.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
# On CPUs vLLM warns, a dozen times in each process, of what only GPUs have.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING" if has_nvidia_gpu() else "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm import PoolingParams, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import PrometheusStatLogger

_REFUSALS = (VLLMValidationError, ValueError)
# Models load side by side, each in a thread, but vLLM keeps the configuration it works on in a global.
_CONFIGURING = threading.Lock()


class VllmEngine:
    """One model in its own vLLM engine processes. Construction blocks until the weights are loaded."""

    def __init__(self, name: str, config: ModelConfig, task: pb.Task, hardware: Hardware) -> None:
        self.registry = CollectorRegistry()
        arguments: dict[str, Any] = {
            "model": str(config.path),
            "served_model_name": name,
            "runner": "generate" if task == pb.TASK_GENERATION else "pooling",
            "dtype": hardware.dtype,
            "max_model_len": config.max_length,
            "max_num_seqs": config.max_num_seqs,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enforce_eager": hardware.enforce_eager,
            "trust_remote_code": False,
            "use_tqdm_on_load": False,
        }
        if hardware.kv_cache_bytes:
            arguments["kv_cache_memory_bytes"] = hardware.kv_cache_bytes
        args = AsyncEngineArgs(**{key: value for key, value in arguments.items() if value is not None})
        with _CONFIGURING:
            vllm_config = args.create_engine_config()
        self._llm = AsyncLLM.from_vllm_config(vllm_config, stat_loggers=[_stat_logger(self.registry)])
        self.max_length: int = self._llm.model_config.max_model_len
        self.vocab_size: int = self._llm.model_config.get_vocab_size()

    async def pool(
        self, request_id: str, inputs: Sequence[Encoded], task: Literal["classify", "token_classify"]
    ) -> list[NDArray[np.float32]]:
        """See seam.Engine."""
        ids = [f"{request_id}-{index}" for index in range(len(inputs))]
        done = False
        try:
            answers = await asyncio.gather(
                *(self._pool_one(id_, one, task) for id_, one in zip(ids, inputs, strict=True))
            )
            done = True
            return answers
        finally:
            if not done:
                await self._abort(ids)

    async def _pool_one(self, request_id: str, encoded: Encoded, task: str) -> NDArray[np.float32]:
        params = PoolingParams(task=task, use_activation=False)
        if encoded.pair_start is not None:
            params.extra_kwargs = {"compressed_token_type_ids": encoded.pair_start}
        with _translated():
            async for output in self._llm.encode(_prompt(encoded.token_ids), params, request_id):
                data = output.outputs.data
        # vLLM ends an aborted pooling request normally, with nothing in it.
        if data.numel() == 0:
            raise EngineFailed("pooling request was aborted")
        return np.asarray(data.float().cpu().numpy(), dtype=np.float32)

    async def generate(
        self, request_id: str, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[list[Delta], None]:
        """See seam.Engine."""
        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        finished = False
        try:
            with _translated():
                params = _sampling_params(sampling, kind)
                stream_of_outputs = self._llm.generate(_prompt(token_ids), params, request_id)
                async with contextlib.aclosing(stream_of_outputs):
                    async for output in stream_of_outputs:
                        finished = output.finished
                        yield [_delta(completion, output, sampling) for completion in output.outputs]
        finally:
            if not finished:
                await self._abort([request_id])

    async def ping(self) -> None:
        """See seam.Engine. `check_health` only reads a flag; this is a round trip through the engine's loop."""
        with _translated():
            await self._llm.is_sleeping()

    async def close(self) -> None:
        """See seam.Engine."""
        # It would take the end of the engine's process for a failure, and log it.
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()
        await asyncio.to_thread(self._llm.shutdown)
        # Its __del__ shuts down again, and fails when that comes as late as the interpreter's end.
        del self._llm

    async def _abort(self, request_ids: list[str]) -> None:
        # vLLM aborts on cancellation only where it was cancelled at the right place: always do it by id. Shielded,
        # because we are being cancelled.
        with contextlib.suppress(EngineDeadError):
            await asyncio.shield(self._llm.abort(request_ids))


def _prompt(token_ids: Sequence[int]) -> Any:
    """A rendered prompt: vLLM takes it as it is, without work of its own on the event loop."""
    return tokens_input(list(token_ids))


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except (EngineDeadError, EngineGenerateError) as error:
        raise EngineFailed("the engine failed") from error
    except _REFUSALS as error:
        raise RequestRefused(str(error)) from error


def _sampling_params(sampling: Sampling, kind: RequestOutputKind) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        n=sampling.n,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        output_kind=kind,
    )


def _delta(completion: CompletionOutput, output: RequestOutput, sampling: Sampling) -> Delta:
    token_ids = list(completion.token_ids)
    finish = completion.finish_reason
    if finish == "abort":
        raise EngineFailed("generation was aborted")
    stop_text = completion.stop_reason if isinstance(completion.stop_reason, str) else ""
    prompt_logprobs: Sequence[Logprob] = ()
    if output.prompt_logprobs and output.prompt_token_ids:
        # The first prompt token has no logprob: nothing comes before it.
        prompt_logprobs = _logprobs(output.prompt_token_ids[1:], output.prompt_logprobs[1:], sampling.prompt_logprobs)
    return Delta(
        index=completion.index,
        text=completion.text,
        token_ids=token_ids,
        logprobs=_logprobs(token_ids, completion.logprobs or (), sampling.logprobs),
        finish=finish if finish is None or finish == "length" else "stop",
        stop_text=stop_text,
        prompt_logprobs=prompt_logprobs,
    )


def _logprobs(token_ids: Sequence[int], positions: Sequence[Any], likeliest: int | None) -> list[Logprob]:
    """One entry a position. vLLM gives a dict by token id: the `likeliest` best ones, and the token that stands."""
    entries = []
    for token_id, candidates in zip(token_ids, positions, strict=False):
        by_rank = sorted(candidates.items(), key=lambda item: item[1].rank or 0)[:likeliest]
        alternatives = [Alternative(id_, entry.logprob, entry.decoded_token or "") for id_, entry in by_rank]
        entries.append(Logprob(token_id, candidates[token_id].logprob, alternatives))
    return entries


def _stat_logger(registry: CollectorRegistry) -> type[PrometheusStatLogger]:
    """vLLM's Prometheus logger on a registry of its own: on the global one a second engine removes the first's."""

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]
        _gauge_cls = partial(Gauge, registry=registry)
        _counter_cls = partial(Counter, registry=registry)
        _histogram_cls = partial(Histogram, registry=registry)

    return StatLogger
