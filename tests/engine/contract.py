"""Run as a script: whether the installed vLLM has what `server/engine.py` uses. Prints what is missing, then exits 1.

Asks for names and parameters only, so it also says for a version that is not in use yet what would have to change.
"""

import inspect
import sys
from dataclasses import fields


def missing() -> list[str]:
    from vllm import PoolingParams, SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs import tokens_input
    from vllm.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    parameters = {
        AsyncLLM.generate: ["prompt", "sampling_params", "request_id"],
        AsyncLLM.encode: ["prompt", "pooling_params", "request_id"],
        AsyncLLM.abort: ["request_id"],
        AsyncLLM.from_vllm_config: ["vllm_config", "stat_loggers"],
        AsyncLLM.is_sleeping: [],
        AsyncLLM.shutdown: [],
        AsyncEngineArgs.create_engine_config: [],
        RequestOutput.__init__: ["outputs", "finished", "prompt_token_ids", "prompt_logprobs"],
        PoolingRequestOutput.__init__: ["outputs", "finished"],
        tokens_input: ["prompt_token_ids"],
    }
    attributes = {
        SamplingParams: """max_tokens temperature top_p top_k min_p presence_penalty frequency_penalty
            repetition_penalty seed n stop stop_token_ids min_tokens ignore_eos logprobs prompt_logprobs output_kind""",
        PoolingParams: "task use_activation extra_kwargs",
        RequestOutputKind: "DELTA FINAL_ONLY",
        PrometheusStatLogger: "_gauge_cls _counter_cls _histogram_cls",
    }
    data = {
        AsyncEngineArgs: """model served_model_name runner dtype max_model_len max_num_seqs gpu_memory_utilization
            enforce_eager trust_remote_code kv_cache_memory_bytes use_tqdm_on_load""",
        CompletionOutput: "index text token_ids logprobs finish_reason stop_reason",
        PoolingOutput: "data",
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
    for kind, names in data.items():
        known_fields = {field.name for field in fields(kind)}
        found += [f"{kind.__name__}.{name}" for name in names.split() if name not in known_fields]
    return found


if __name__ == "__main__":
    problems = missing()
    print("\n".join(problems))
    sys.exit(bool(problems))
