"""Numbers in place of a model. They follow from the token ids, so that a test can tell which input an answer is for."""

from collections.abc import Sequence

import numpy as np

from tuneserve.server.engine.interface import Alternative, Delta, Logprob, Sampling


def vector(token_ids: Sequence[int], task: str, labels: int) -> np.ndarray:
    ids = np.asarray(token_ids)
    if task == "embed":
        return np.array([3, 4, len(ids)], dtype=np.float32)
    if task == "token_classify":
        return np.eye(labels, dtype=np.float32)[ids % labels] * 9
    return np.eye(labels, dtype=np.float32)[len(ids) % labels] * 2


def pieces(token_ids: Sequence[int], sampling: Sampling, stream: bool) -> Sequence[Delta]:
    """What it writes, as each completion: "ab" for each token."""
    if stream:
        return [Delta(0, "ab", [7])] * (sampling.max_tokens - 1) + [Delta(0, "ab", [7], finish="length")]
    count, token = sampling.max_tokens, (*sampling.allowed_token_ids, 7)[0]
    others = [Alternative(index, -index, "é") for index in range(sampling.logprobs or 0)]
    made = [] if sampling.logprobs is None else [Logprob(token, -0.5, others)] * count
    prompt = [] if sampling.prompt_logprobs is None else [Logprob(id_, -0.5, []) for id_ in token_ids[1:]]
    return [Delta(0, "ab" * count, [token] * count, made, "length", prompt_logprobs=prompt)]
