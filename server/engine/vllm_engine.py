"""The real engine: vLLM's AsyncLLM behind `interface.Engine`. In the server's process, only this file, `requests.py`
and `parsers.py` use vLLM (0.26 to 0.33).

It knows token ids and numbers, and nothing of gRPC, texts or labels. Importing it imports torch and vLLM, so the server
does that late, in a thread.
"""

import asyncio
import contextlib
import itertools
import os
import threading
import warnings
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge

from tuneserve.machine import runtime
from tuneserve.server import concurrency
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.hardware import Hardware
from tuneserve.server.engine.interface import (
    Delta,
    Encoded,
    EngineFailed,
    Parsers,
    PoolTask,
    RequestRefused,
    Sampling,
    Ticket,
)
from tuneserve.server.engine.tokenizer_files import readable
from tuneserve.server.histogram import Histogram
from tuneserve.server.turns import in_turns
from tuneserve.v1 import checkpoint_pb2 as pb

# Must be set before vLLM is imported, which reads them then. Spawn, never fork: gRPC has running threads. Where there
# is a fork server, it forks the engines.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
# Log only errors: on CPUs vLLM warns a dozen times in each process about missing GPU features. Errors that repeat what
# a caller sent (a grammar, stop strings, tokens) are left out, too. If the user configures vLLM's logging, all is
# logged.
if not {"VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING"} & os.environ.keys():
    os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("vllm_logging.json")))
os.environ.setdefault("LLGUIDANCE_LOG_LEVEL", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.update(runtime.unset(runtime.engine_environment()))

import torch
from vllm import SamplingParams
from vllm.config import PoolerConfig, StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.loggers import PrometheusStatLogger

from tuneserve.server.engine import fork_server
from tuneserve.server.engine import options as engine_options
from tuneserve.server.engine import processes as engine_processes
from tuneserve.server.engine import requests as engine_requests

T = TypeVar("T")

# vLLM looks at all that is imported, and PyTorch warns of a name of its own.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.triton_utils")
if fork_server.is_used():
    vars(engine_utils).update(get_mp_context=fork_server.Context)

# Models load concurrently, each in a thread, but vLLM keeps its current configuration in a global.
_CONFIGURING = threading.Lock()
_LIVENESS_SECONDS = 0.1
# So many long prompts, at least, are read in one step.
_PROMPTS_A_STEP = 4
# vLLM gives its processes 5 s to end by themselves.
_CLOSE_SECONDS = 15.0


class VllmEngine:
    """One model in its own vLLM engine processes. Its attributes are known once it has started."""

    max_length: int
    max_num_seqs: int
    vocab_size: int
    long_prompt: int
    long_prompts: int
    cache_block: int

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        manifest: pb.Checkpoint,
        hardware: Hardware,
        otlp_endpoint: str | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.parsers: Parsers | None = None
        self._config = config
        self._options = engine_options.arguments(name, config, manifest, hardware, otlp_endpoint)
        self._engine: AsyncLLM | None = None
        self._start: engine_processes.Start | None = None
        self._closing: asyncio.Task[None] | None = None
        self._processes: Sequence[psutil.Process] = ()
        self._traced = otlp_endpoint is not None
        self._adapters: dict[str, LoRARequest] = {}
        self._adapter_ids = itertools.count(1)
        self._met = False

    async def start(self) -> None:
        """See interface.Engine."""
        fork_server.start()
        self._start = engine_processes.Start(self._load)
        await self._start.wait()

    def _load(self) -> None:
        with readable(self._config.path) as tokenizer:
            with _CONFIGURING:
                vllm_config = _arguments(self._options, tokenizer).create_engine_config()
                _share_steps(vllm_config)
                self.parsers = _parsers(self._config, vllm_config.model_config)
            engine = AsyncLLM.from_vllm_config(vllm_config, stat_loggers=[_stat_logger(self.registry)])
        self._processes = engine_processes.started_by(engine)
        self.max_length = engine.model_config.max_model_len
        self.max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        self.vocab_size = engine.model_config.get_vocab_size()
        self.long_prompt, self.long_prompts = _long_prompts(vllm_config.scheduler_config, self.max_length)
        cache = vllm_config.cache_config
        self.cache_block = cache.block_size if cache.enable_prefix_caching else 0
        self._engine = engine

    @property
    def _llm(self) -> AsyncLLM:
        if self._engine is None:
            raise EngineFailed("the engine was closed")
        return self._engine

    async def pool(self, ticket: Ticket, inputs: Sequence[Encoded], task: PoolTask) -> list[NDArray[np.float32]]:
        """See interface.Engine."""
        await self._meet()
        ids = [f"{ticket.request_id}#{index}" for index in range(len(inputs))]
        done = False
        try:
            with _translated():
                # Not `encode`, which needs a task for each of possibly hundreds of inputs.
                each = in_turns(zip(ids, inputs, strict=True))
                answers = [await self._add(ticket, id_, one, task) async for id_, one in each]
                outputs = [(await answer.get()).outputs.data for answer in answers]
            # vLLM ends an aborted pooling request normally, with empty data.
            if not all(data.numel() for data in outputs):
                raise EngineFailed("pooling request was aborted")
            done = True
            if len(outputs) > 1 and len({data.shape for data in outputs}) == 1:
                # All at once: converting one takes as long as converting all.
                return list(torch.stack(outputs).float().cpu().numpy())
            return [data.float().cpu().numpy() for data in outputs]
        finally:
            if not done:
                await self._abort(ids)

    async def _add(self, ticket: Ticket, request_id: str, encoded: Encoded, task: PoolTask) -> RequestOutputCollector:
        params = engine_requests.pooling_params(encoded, task)
        prompt = engine_requests.prompt(encoded.token_ids, ticket.salt)
        return await self._llm.add_request(request_id, prompt, params, **self._with(ticket))

    async def generate(
        self, ticket: Ticket, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[Delta, None]:
        """See interface.Engine."""
        await self._meet()
        tells_first = not stream and ticket.read is not None
        params = engine_requests.sampling_params(sampling, stream, self._verify, tells_first)
        prompt = engine_requests.prompt(token_ids, ticket.salt)
        queue: RequestOutputCollector | None = None
        kept: Delta | None = None
        finished = False
        try:
            with _translated():
                # Not `generate`, which does not tell how many tokens a cancelled request has generated.
                queue = await self._llm.add_request(ticket.request_id, prompt, params, **self._with(ticket))
            while not finished:
                output = await _next(queue)
                finished = output.finished
                delta = await engine_requests.delta(output.outputs[0], output, sampling)
                kept = engine_requests.joined(kept, delta) if kept else delta
                if stream or finished:
                    whole, kept = kept, None
                    yield whole
                elif ticket.read:
                    ticket.read()
        finally:
            if not finished:
                await self._abort([ticket.request_id])
                ticket.lost((_left(queue) if queue else 0) + (len(kept.token_ids) if kept else 0))

    def _with(self, ticket: Ticket) -> dict[str, Any]:
        if ticket.adapter and ticket.adapter not in self._adapters:
            raise RequestRefused("adapter")
        return {
            "lora_request": self._adapters[ticket.adapter] if ticket.adapter else None,
            "priority": ticket.priority,
            "trace_headers": ticket.trace if self._traced and ticket.trace else None,
        }

    def _verify(self, params: Any) -> None:
        """Runs vLLM's own check of sampling parameters, as vLLM does when it receives a request."""
        config, processor = self._llm.vllm_config, self._llm.input_processor
        # Not params.verify, which does nothing in `engine_requests._Params`.
        SamplingParams.verify(
            params,
            config.model_config,
            config.speculative_config,
            config.structured_outputs_config,
            processor.tokenizer,
        )

    async def load_adapter(self, name: str, directory: Path) -> None:
        """See interface.Engine. Raises RequestRefused for one that does not fit the model."""
        request = LoRARequest(name, next(self._adapter_ids), str(directory))
        try:
            await self._while_alive(self._llm.add_lora(request))
        except EngineFailed:
            raise
        # vLLM re-raises errors of the engine's process as a bare Exception.
        except Exception as error:
            raise RequestRefused("adapter") from error
        self._adapters[name] = request

    async def unload_adapter(self, name: str) -> None:
        """See interface.Engine."""
        request = self._adapters.pop(name)
        await self._while_alive(self._llm.remove_lora(request.lora_int_id))

    async def ping(self) -> None:
        """See interface.Engine. `check_health` only reads a flag; this is a round trip through the engine's loop."""
        await self._while_alive(self._llm.is_sleeping())

    async def _meet(self) -> None:
        """Fetches what vLLM's first request waits for, and would wait for forever with a dead engine."""
        if not self._met:
            await self._while_alive(self._llm.get_supported_tasks())
            self._met = True

    async def _while_alive(self, answer: Awaitable[T]) -> T:
        """Waits for an answer of the engine's process. vLLM itself would wait forever if the process is dead."""
        task = asyncio.ensure_future(answer)
        try:
            while not task.done():
                await asyncio.wait((task,), timeout=_LIVENESS_SECONDS)
                if not task.done() and (self._engine is None or self._engine.errored):
                    raise EngineFailed("the engine is dead")
            with _translated():
                return task.result()
        finally:
            task.cancel()

    def cpu_seconds(self) -> Mapping[int, float]:
        """See interface.Engine."""
        return engine_processes.cpu_seconds(self._all_processes())

    def kill(self) -> None:
        """See interface.Engine. Must be called on the event loop."""
        self._end_waiting()
        engine_processes.kill(self._all_processes())

    def _all_processes(self) -> Sequence[psutil.Process]:
        return self._processes or (self._start.processes() if self._start else ())

    async def close(self) -> None:
        """See interface.Engine. May be called again, and after `kill`. Goes on when its caller is cancelled."""
        self._closing = self._closing or asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._start is not None:
            await self._start.end(_CLOSE_SECONDS)
        if self._engine is None:
            return
        self._end_waiting()
        engine, self._engine = self._engine, None
        shutdown = asyncio.ensure_future(concurrency.apart(engine.shutdown))
        await asyncio.wait((shutdown,), timeout=_CLOSE_SECONDS)
        # Including processes that outlived their parent. Their memory is free for another engine only once they are
        # gone.
        engine_processes.kill(self._processes)
        await concurrency.apart(engine_processes.wait_for_end, self._processes, _CLOSE_SECONDS)
        await asyncio.wait((shutdown,), timeout=_CLOSE_SECONDS)
        # AsyncLLM.__del__ shuts down again, and fails if that happens at the interpreter's end.
        del engine, shutdown

    def _end_waiting(self) -> None:
        """Makes everything that waits for the engine raise EngineFailed."""
        if self._engine is None or self._engine.output_handler is None or self._engine.output_handler.done():
            return
        # The output handler would log the end of the engine's processes as a failure.
        self._engine.output_handler.cancel()
        self._engine.output_processor.propagate_error(EngineDeadError())

    async def _abort(self, request_ids: list[str]) -> None:
        if self._engine is None or self._engine.errored:
            return
        # Shielded, because this task is being cancelled.
        with contextlib.suppress(EngineDeadError):
            await asyncio.shield(self._engine.abort(request_ids))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translates vLLM's exceptions. Only for calls into vLLM: a ValueError in our own code is a bug."""
    try:
        yield
    except (EngineDeadError, EngineGenerateError) as error:
        raise EngineFailed("the engine failed") from error
    # vLLM's remaining checks after `_verify`, of the prompt. Before 0.27 they raise a plain ValueError.
    except (VLLMValidationError, ValueError) as error:
        raise RequestRefused from error


async def _next(queue: RequestOutputCollector) -> RequestOutput:
    """Returns the next output. An exception that vLLM puts into the queue when the engine ends becomes EngineFailed."""
    try:
        return queue.get_nowait() or await queue.get()
    except Exception as error:
        raise EngineFailed("the engine failed") from error


def _left(queue: RequestOutputCollector) -> int:
    """Returns the number of generated tokens still in the queue; vLLM leaves those of an aborted request there, too."""
    with contextlib.suppress(Exception):
        if output := queue.get_nowait():
            return sum(len(one.token_ids) for one in output.outputs)
    return 0


def work_for(leader: str, rank: int, options: Mapping[str, Any], path: Path) -> None:
    """Computes a machine's part of an engine that spans several, until a process of that part ends.

    The engine itself is on the first machine, `leader`. `options` are its own.
    """
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    with readable(path) as tokenizer:
        arguments = _arguments({**options, "node_rank": rank, "master_addr": leader}, tokenizer)
        executor = MultiprocExecutor(arguments.create_engine_config(headless=True), monitor_workers=False)
    executor.start_worker_monitor(inline=True)


def _arguments(options: Mapping[str, Any], tokenizer: Path) -> AsyncEngineArgs:
    kinds = {"structured_outputs_config": StructuredOutputsConfig, "pooler_config": PoolerConfig}
    made = {key: kind(**options[key]) for key, kind in kinds.items() if isinstance(options.get(key), Mapping)}
    return AsyncEngineArgs(**{**options, **made, "tokenizer": str(tokenizer)})


def _share_steps(config: Any) -> None:
    """Gives a prompt a quarter of a step at most while there are other requests: by default, vLLM gives a long prompt
    all of each step until it is read, and whoever comes meanwhile waits. On CPUs alone, because it was tried there.
    """
    scheduler = config.scheduler_config
    if scheduler.enable_chunked_prefill and not (scheduler.long_prefill_token_threshold or runtime.has_nvidia_gpu()):
        quarter = scheduler.max_num_batched_tokens // _PROMPTS_A_STEP
        scheduler.long_prefill_token_threshold = min(quarter, config.model_config.max_model_len)


def _long_prompts(scheduler: Any, max_length: int) -> tuple[int, int]:
    """Returns how long a prompt is that is read in many steps, and how many of them leave room in each step."""
    if not scheduler.enable_chunked_prefill:
        return max_length, 1
    piece = scheduler.long_prefill_token_threshold or scheduler.max_num_batched_tokens
    return 2 * piece, max(1, scheduler.max_num_batched_tokens // piece - 1)


def _parsers(config: ModelConfig, model_config: Any) -> Parsers | None:
    if not (config.tool_parser or config.reasoning_parser):
        return None
    # Imports all of vLLM's OpenAI server, so only for models with parsers.
    from vllm.tokenizers import cached_tokenizer_from_config

    from tuneserve.server.engine.parsers import VllmParsers

    tokenizer = cached_tokenizer_from_config(model_config)
    return VllmParsers(config.tool_parser, config.reasoning_parser, tokenizer, model_config)


def _stat_logger(registry: CollectorRegistry) -> type[PrometheusStatLogger]:
    """Returns vLLM's Prometheus logger with its own registry: in the global one, a second engine removes the first's
    metrics.
    """

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]
        _gauge_cls = partial(Gauge, registry=registry)
        _counter_cls = partial(Counter, registry=registry)
        _histogram_cls = partial(Histogram, registry=registry)

    return StatLogger
