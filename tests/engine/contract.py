"""Run as a script: whether the installed vLLM has what `server/engine/*.py` use. Prints what is missing, then exits 1.

Asks for names and parameters only, so it also says for a version that is not in use yet what would have to change: with
the unpacked wheel of that version first in PYTHONPATH, its Python is read in place of the installed one.
"""

import inspect
import re
import sys
from dataclasses import fields


def missing() -> list[str]:
    from vllm import PoolingParams, SamplingParams
    from vllm.config import CacheConfig, ModelConfig, PoolerConfig, SchedulerConfig, StructuredOutputsConfig, VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.generate.base.protocol import FunctionDefinition
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs import tokens_input
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
    from vllm.parser import Parser, ParserManager
    from vllm.renderers.chat_utils import make_tool_call_id
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
    from vllm.tokenizers import cached_tokenizer_from_config
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.coordinator import DPCoordinator
    from vllm.v1.engine.core_client import BackgroundResources, MPClient
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
    from vllm.v1.engine.utils import CoreEngineProcManager
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    request = ["request_id", "lora_request", "trace_headers", "priority"]
    parameters = {
        AsyncLLM.add_request: ["prompt", "params", *request],
        AsyncLLM.abort: ["request_id", "internal"],
        AsyncLLM.add_lora: ["lora_request"],
        AsyncLLM.from_vllm_config: ["vllm_config", "stat_loggers"],
        AsyncLLM.get_supported_tasks: [],
        AsyncLLM.is_sleeping: [],
        AsyncLLM.remove_lora: ["lora_id"],
        AsyncLLM.shutdown: [],
        AsyncEngineArgs.create_engine_config: [],
        ModelConfig.get_vocab_size: [],
        OutputProcessor.propagate_error: ["e"],
        RequestOutputCollector.get: [],
        RequestOutputCollector.get_nowait: [],
        RequestOutput.__init__: ["outputs", "finished", "prompt_token_ids", "prompt_logprobs"],
        Parser.adjust_request: ["request"],
        Parser.is_reasoning_end: ["input_ids"],
        Parser.parse: ["model_output", "request", "enable_auto_tools", "model_output_token_ids"],
        Parser.parse_delta: ["delta_text", "delta_token_ids", "request", "prompt_token_ids", "finished"],
        Parser.set_prompt_token_ids: ["prompt_token_ids"],
        ParserManager.get_parser: ["tool_parser_name", "reasoning_parser_name", "enable_auto_tools", "tokenizer"],
        PoolingRequestOutput.__init__: ["outputs", "finished"],
        SamplingParams.verify: ["model_config", "speculative_config", "structured_outputs_config", "tokenizer"],
        VLLMValidationError.__init__: ["parameter"],
        cached_tokenizer_from_config: ["model_config"],
        make_tool_call_id: [],
        tokens_input: ["prompt_token_ids", "cache_salt"],
    }
    operators = {
        "bgmv_shrink": ["inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor", "scaling"],
        "bgmv_expand": ["inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor", "add_inputs"],
        "bgmv_expand_slice": [
            *("inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor"),
            *("slice_offset", "slice_size", "add_inputs"),
        ],
    }
    for module in (lora_ops, punica_cpu):
        parameters |= {getattr(module, name): names for name, names in operators.items()}
    attributes = {
        AsyncLLM: "errored",
        SamplingParams: """max_tokens temperature top_p top_k min_p presence_penalty frequency_penalty
            repetition_penalty seed n stop stop_token_ids min_tokens ignore_eos logprobs prompt_logprobs output_kind
            logit_bias allowed_token_ids bad_words include_stop_str_in_output skip_special_tokens
            structured_outputs""",
        PoolingParams: "task use_activation extra_kwargs",
        LoRARequest: "lora_name lora_int_id lora_path",
        RequestOutputKind: "DELTA FINAL_ONLY",
        PrometheusStatLogger: "_gauge_cls _counter_cls _histogram_cls",
    }
    data = {
        AsyncEngineArgs: """model served_model_name runner convert dtype tokenizer max_model_len max_num_seqs
            gpu_memory_utilization kv_cache_memory_bytes block_size enforce_eager scheduling_policy trust_remote_code
            use_tqdm_on_load otlp_traces_endpoint enable_lora max_loras max_cpu_loras max_lora_rank
            worker_extension_cls structured_outputs_config hf_overrides pooler_config max_num_batched_tokens""",
        BackgroundResources: "engine_manager coordinator",
        CacheConfig: "block_size enable_prefix_caching",
        CompletionOutput: "index text token_ids logprobs finish_reason stop_reason",
        PoolerConfig: "task",
        PoolingOutput: "data",
        SchedulerConfig: """max_num_seqs policy enable_chunked_prefill long_prefill_token_threshold
            max_num_batched_tokens""",
        StructuredOutputsConfig: "backend",
        StructuredOutputsParams: "json regex choice grammar json_object _backend _backend_was_auto",
        VllmConfig: "model_config scheduler_config speculative_config structured_outputs_config",
    }
    models = {
        ChatCompletionRequest: "messages tools tool_choice skip_special_tokens",
        ChatCompletionToolsParam: "function",
        FunctionDefinition: "name parameters",
    }
    # What is only set when an object is made: looked for in the source.
    assigned = {
        AsyncLLM: "engine_core input_processor model_config output_handler output_processor vllm_config",
        CoreEngineProcManager: "processes",
        DPCoordinator: "proc",
        MPClient: "resources",
        RequestOutputCollector: "request_id",
    }
    found = [
        f"{error.__name__} is no exception"
        for error in (EngineDeadError, EngineGenerateError, VLLMValidationError)
        if not issubclass(error, Exception)
    ]
    for function, names in parameters.items():
        known = inspect.signature(function).parameters
        found += [f"{function.__qualname__}({name})" for name in names if name not in known]
    for kind, names in attributes.items():
        found += [f"{kind.__name__}.{name}" for name in names.split() if not hasattr(kind, name)]
    for kind, names in models.items():
        found += [f"{kind.__name__}.{name}" for name in names.split() if name not in kind.model_fields]
    for kind, names in data.items():
        known_fields = {field.name for field in fields(kind)}
        found += [f"{kind.__name__}.{name}" for name in names.split() if name not in known_fields]
    for kind, names in assigned.items():
        source = inspect.getsource(kind)
        found += [
            f"{kind.__name__}.{name}" for name in names.split() if not re.search(rf"self\.{name}\b[^=\n]*=", source)
        ]
    return found


if __name__ == "__main__":
    problems = missing()
    print("\n".join(problems))
    sys.exit(bool(problems))
