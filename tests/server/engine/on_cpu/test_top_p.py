"""Top-p as our engines compute it on CPUs, beside vLLM's own."""

import subprocess
import sys

# In a process of its own: importing the file changes vLLM.
CODE = """
import itertools
import torch
from tuneserve.server.engine.on_cpu import top_p
from vllm.v1.sample.ops import topk_topp_sampler as vllm

assert vllm.apply_top_k_top_p is top_p.apply_top_k_top_p
torch.manual_seed(2)
cases = list(itertools.product((0.3, 2.0, 6.0), (0.0, 0.1, 0.5, 0.9, 0.999, 1.0), (1, 7, 255, 256, 257, 6000, None)))
for vocabulary in (100, 256, 5000, 20_000):
    logits = torch.stack([scale * torch.randn(vocabulary) for scale, _, _ in cases])
    # A grammar leaves few tokens, one alone, or one that is not among the likeliest.
    logits[1::5, : vocabulary // 2] = -torch.inf
    logits[2::5, 1:] = -torch.inf
    p = torch.tensor([p for _, p, _ in cases])
    k = torch.tensor([min(k or vocabulary, vocabulary) for _, _, k in cases], dtype=torch.int32)
    for given in (k, None):
        expected = vllm.apply_top_k_top_p_pytorch(logits.clone(), None if given is None else given.clone(), p)
        found = top_p.apply_top_k_top_p(logits.clone(), given, p)
        kept, wanted = found > -torch.inf, expected > -torch.inf
        assert torch.equal(found[kept], logits[kept])
        # Sums are rounded differently, so tokens at the border may be in or out: what has next to no chance.
        among = logits if given is None else vllm.apply_top_k_only(logits.clone(), k.clone())
        assert (among.softmax(1) * (kept != wanted)).sum(1).max() < 1e-5
        assert kept.any(1).all()
        assert torch.equal(kept[p == 0].sum(1), torch.ones(int((p == 0).sum()), dtype=torch.long))
some = torch.randn(3, 50)
assert torch.equal(top_p.apply_top_k_top_p(some.clone(), None, None), some)
assert (top_p.apply_top_k_top_p(some.clone(), torch.full((3,), 4), None) > -torch.inf).sum(1).tolist() == [4, 4, 4]
"""


def test_the_tokens_that_vllm_keeps_are_kept():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
