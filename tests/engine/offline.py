"""Run as a script: what plain vLLM, in process and without this server, makes of a job. Prints one JSON object.

offline.py MODEL  < {"prompts": [[token ids]], "max_tokens": n}  -> {"texts": [...], "token_ids": [...]}
"""

import json
import os
import sys

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
# As in our engines: vLLM would compute with it.
sys.modules |= {"zentorch": None}


def main() -> None:
    from vllm import LLM, SamplingParams

    from tuneserve.machine.tiers import this_tier

    job = json.load(sys.stdin)
    llm = LLM(model=sys.argv[1], dtype=this_tier().dtype, enforce_eager=True, kv_cache_memory_bytes=1 << 30)
    params = SamplingParams(max_tokens=job["max_tokens"], temperature=0)
    # One at a time: in a batch, sums come out in another order.
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    outputs = [llm.generate(prompt, params, use_tqdm=False)[0].outputs[0] for prompt in prompts]
    answer = {"texts": [one.text for one in outputs], "token_ids": [list(one.token_ids) for one in outputs]}
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
