"""Run as a script: what our engine makes of prompts with further engine options, in a process of its own.

parallel.py MODEL OPTIONS < {"prompts": [[token ids]], "max_tokens": n}  -> {"token_ids": [[...]], "processes": n}
"""

import asyncio
import json
import sys
from pathlib import Path

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.hardware import Hardware
from tuneserve.server.engine.interface import Sampling, Ticket
from tuneserve.v1 import checkpoint_pb2


async def main() -> None:
    from tuneserve.server.engine.vllm_engine import VllmEngine

    model, options = sys.argv[1:]
    job = json.load(sys.stdin)
    config = ModelConfig(path=Path(model), max_length=256, engine=json.loads(options))
    manifest = checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_GENERATION)
    engine = VllmEngine("parallel", config, manifest, Hardware("float32", 1 << 27, True))
    await engine.start()
    sampling = Sampling(max_tokens=job["max_tokens"], temperature=0, ignore_eos=True)

    async def tokens(index: int, prompt: list[int]) -> list[int]:
        outputs = [delta async for delta in engine.generate(Ticket(f"request-{index}"), prompt, sampling, stream=True)]
        return [id_ for delta in outputs for id_ in delta.token_ids]

    try:
        answers = await asyncio.gather(*(tokens(index, prompt) for index, prompt in enumerate(job["prompts"])))
        print("\n" + json.dumps({"token_ids": answers, "processes": len(engine._processes)}))
    finally:
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
