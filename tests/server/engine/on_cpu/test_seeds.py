"""The generators of requests with a seed, as our engines use them on CPUs."""

import subprocess
import sys

# In a process of its own: importing the file changes vLLM.
CODE = """
import torch
from tuneserve.server.engine.on_cpu import seeds
from vllm.v1.worker.gpu_input_batch import CachedRequestState

def drawn(generator):
    return torch.empty(1000).exponential_(generator=generator)

def request(generator):
    options = dict(mm_features=[], sampling_params=None, block_ids=([],), num_computed_tokens=0, output_token_ids=[])
    return CachedRequestState(req_id="r", prompt_token_ids=[1], generator=generator, **options)

expected = drawn(torch.Generator().manual_seed(4))
generator = request(torch.Generator().manual_seed(4)).generator
for _ in range(3):
    assert torch.equal(drawn(generator), expected)
    # As vLLM does when the prompt has not been read to its end.
    generator.set_offset(generator.get_offset() - 4)
assert torch.equal(drawn(generator), expected)
assert not torch.equal(drawn(generator), expected)
assert request(None).generator is None
"""


def test_what_was_drawn_while_a_prompt_is_read_is_drawn_again():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
