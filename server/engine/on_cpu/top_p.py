"""Top-p on CPUs, loaded into vLLM's worker processes: only the likeliest tokens are sorted, not the vocabulary.

vLLM sorts the whole row of every sequence for each token. With 49,000 tokens and 32 sequences that took as long as the
model itself (135M parameters, benchmarks/NOTES.md). The tokens that top-p keeps are almost always among the few hundred
likeliest, which are found without sorting the others; a row whose are not is done again with more.

Keeps the tokens that vLLM keeps, but for rounding, and for ties at the border of top-k: exactly k are kept. Knows only
vLLM's function. Includes zentorch, because vLLM accepts only one worker extension.

The import fails if vLLM does not have its function where it is expected.
"""

import torch
from vllm.v1.sample.ops import topk_topp_sampler

from tuneserve.server.engine.on_cpu.zen import Worker

__all__ = ["Worker", "apply_top_k_top_p"]

# How many of the likeliest tokens are sorted, first and then. Flat rows, which need more, are left to vLLM.
_SORTED = (256, 4096)


_by_sorting = topk_topp_sampler.apply_top_k_top_p


def apply_top_k_top_p(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
    """Returns the logits (rows, vocabulary) with -inf for all tokens that the rows' `k` and `p` (rows) leave out. May
    change `logits`.
    """
    if p is None:
        return _by_sorting(logits, k, p)
    vocabulary = logits.shape[1]
    k = torch.full_like(p, vocabulary, dtype=torch.long) if k is None else k.long()
    rows = ((p < 1) | (k < vocabulary)).nonzero().squeeze(1)
    for size in _SORTED:
        if size >= vocabulary or not len(rows):
            break
        whole = logits[rows]
        values, tokens = whole.topk(size, dim=1)
        values.masked_fill_(torch.arange(size) >= k[rows, None], -torch.inf)
        # Chances are among the k likeliest tokens, which must all be here, or among all of them.
        total = torch.where(k[rows] <= size, values.logsumexp(1), whole.logsumexp(1))
        chances = (values - total[:, None]).exp()
        left_out = chances.cumsum(1) - chances >= p[rows, None]
        left_out[:, 0] = False  # also where p is 0
        found = (k[rows] <= size) | (left_out[:, -1] & (k[rows] == vocabulary))
        logits[rows[found]] = -torch.inf
        logits[rows[found, None], tokens[found]] = values.masked_fill_(left_out, -torch.inf)[found]
        rows = rows[~found]
    if len(rows):
        logits[rows] = _by_sorting(logits[rows], k[rows], p[rows])
    return logits


topk_topp_sampler.apply_top_k_top_p = apply_top_k_top_p
