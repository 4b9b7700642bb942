"""Run as a script: what plain vLLM, in process and without this server, makes of a job. Prints one JSON object.

offline.py generate MODEL  < {"prompts": [[token ids]], "max_tokens": n}  -> {"texts": [...], "token_ids": [...]}
offline.py classify MODEL  < {"texts": [...]}                             -> {"probabilities": [...]}
"""

import json
import os
import sys

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}


def main() -> None:
    from vllm import LLM, SamplingParams

    kind, model = sys.argv[1:]
    job = json.load(sys.stdin)
    common = {"model": model, "dtype": "bfloat16", "enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}
    answer: dict[str, list[object]]
    if kind == "generate":
        llm = LLM(**common)
        params = SamplingParams(max_tokens=job["max_tokens"], temperature=0)
        # One at a time: in a batch, bfloat16 sums come out in another order.
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
        outputs = [llm.generate(prompt, params, use_tqdm=False)[0].outputs[0] for prompt in prompts]
        answer = {"texts": [one.text for one in outputs], "token_ids": [list(one.token_ids) for one in outputs]}
    else:
        llm = LLM(**common, runner="pooling")
        results = llm.classify(job["texts"], use_tqdm=False)
        answer = {"probabilities": [list(one.outputs.probs) for one in results]}
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
