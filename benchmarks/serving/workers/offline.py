"""Worker: vLLM without a server, which gets a whole job in one call: the upper limit for any server.

Runs only as a process of its own: `python -m tuneserve.benchmarks.serving.workers.offline SETTINGS`, where SETTINGS are
the arguments of vLLM's `LLM` as JSON. The only file here that imports vLLM.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.worker import work


def prepare() -> Callable[[Job], Outcome]:
    """Loads the model."""
    from vllm import LLM, SamplingParams

    llm: Any = LLM(**json.loads(sys.argv[1]))

    def answer(output: Any) -> str:
        if hasattr(output.outputs, "data"):
            return str(llm.llm_engine.model_config.hf_config.id2label[int(output.outputs.data.argmax())])
        return str(output.outputs[0].text)

    def do(job: Job) -> Outcome:
        cpu, started = time.process_time(), time.perf_counter()
        if not job.max_tokens:
            outputs = llm.encode(list(job.texts), pooling_task="classify", use_tqdm=False)
        else:
            params = SamplingParams(max_tokens=job.max_tokens, temperature=0, ignore_eos=True)
            given: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in job.prompts]
            given += [{"prompt": text} for text in job.texts]
            outputs = llm.generate(given, params, use_tqdm=False)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return Outcome(
            seconds=seconds,
            texts=0 if job.max_tokens else len(outputs),
            prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
            answers=[answer(output) for output in outputs] if job.answers else [],
            output_tokens=sum(len(output.outputs[0].token_ids) for output in outputs) if job.max_tokens else 0,
            client_cpu=cpu,
        )

    return do


if __name__ == "__main__":
    work(prepare)
