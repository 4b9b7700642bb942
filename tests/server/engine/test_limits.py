"""Limits of constraints in the engines' processes: that vLLM finds them, and what they end."""

import importlib.metadata
import subprocess
import sys

# Ambiguous only behind what no check beforehand will write: then each mask takes longer than the last.
CODE = """
import random, time
from itertools import product

import llguidance, numpy as np
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tuneserve.server.engine.limits import install

install()
install()
letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
pairs, triples = list(product(letters, repeat=2)), list(product(letters, repeat=3))
tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs), *map("".join, triples)]
merges = [*pairs, *((first + second, third) for first, second, third in triples)]
made = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = llguidance.LLTokenizer(made.to_str())

def write(grammar, most):
    "As vLLM makes and follows one. Returns how many tokens it took, and whether it was given up."
    matcher, longest = llguidance.LLMatcher(tokenizer, grammar, log_level=0), 0.0
    mask, chance = allocate_token_bitmask(1, tokenizer.vocab_size), random.Random(0)
    for count in range(most):
        started = time.thread_time()
        fill_next_token_bitmask(matcher, mask, 0)
        longest = max(longest, time.thread_time() - started)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        allowed = allowed[allowed != tokenizer.eos_token]
        if matcher.is_error() or not len(allowed):
            break
        matcher.consume_token(int(chance.choice(allowed)))
    assert longest < 0.25, longest
    return count + 1, matcher.is_error()

count, failed = write(llguidance.grammar_from("grammar", "start: /[ab]{40}/ a\\na: /./ | a a"), 400)
assert failed and 13 < count < 400, count
schema = llguidance.LLMatcher.grammar_from_json_schema('{"type": "array", "items": {"type": "string"}}')
assert llguidance.LLMatcher.validate_grammar(schema) == ""
assert not write(schema, 50)[1]
assert not write(llguidance.grammar_from("regex", "[a-z ]{1,300}"), 50)[1]
"""


def test_vllm_finds_them():
    found = importlib.metadata.entry_points(group="vllm.general_plugins", name="tuneserve")
    assert [one.value for one in found] == ["tuneserve.server.engine.limits:install"]


def test_what_gets_slow_later_ends():
    subprocess.run([sys.executable, "-P", "-c", CODE], check=True, timeout=300)
