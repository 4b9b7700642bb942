"""Seeds on CPUs, loaded into vLLM's worker processes: a request with a seed may have its prompt read in several steps.

After each step that reads only a part of a prompt, vLLM takes back the random number drawn in vain, by the generator's
offset. Generators of CPUs have none: the error ends the engine, and with it the calls of everybody (seen in vLLM 0.32).
Here the generator starts anew, which is the same: while the prompt is being read, no number has been used. A request
that was preempted repeats its numbers. Includes top-p, because vLLM accepts only one worker extension.

The import fails if vLLM does not have its class where it is expected.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from tuneserve.server.engine.on_cpu.top_p import Worker

__all__ = ["Worker"]


class Generator(torch.Generator):  # type: ignore[misc]
    """A generator of a CPU, with an offset that can only be taken back to the beginning."""

    def get_offset(self) -> int:
        """Returns some offset, from which vLLM subtracts."""
        return 4

    def set_offset(self, offset: int) -> None:
        """Starts anew."""
        self.manual_seed(self.initial_seed())


_made = CachedRequestState.__init__


def _make(self: Any, *args: Any, **more: Any) -> None:
    _made(self, *args, **more)
    if self.generator is not None and self.generator.device.type == "cpu":
        seed = self.generator.initial_seed()
        self.generator = Generator()
        self.generator.manual_seed(seed)


CachedRequestState.__init__ = _make
