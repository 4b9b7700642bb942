"""Limits the work that a constraint may cause for one token in the engine: vLLM sets no limit of its own.

A mask is computed between two steps, while all requests of the engine wait. By default the library gives up at 50,000
items of a grammar that may come next, which takes half a second; here it gives up at 2,000. JSON schemas and grammars
that people write have some hundred. Only the request that exceeds the limit ends.

This is a vLLM plugin: vLLM calls `install` in each of its processes. pyproject.toml has the entry point.
"""

from functools import partial

import llguidance

_MOST_PARTS = 2_000


def limits() -> llguidance.LLParserLimits:
    """Returns the limits of one constraint."""
    return llguidance.LLParserLimits(step_max_items=_MOST_PARTS)


def install() -> None:
    """Sets the limits for all matchers that are made without any. May be called again."""
    made = vars(llguidance)["LLMatcher"]
    if isinstance(made, partial):
        return
    limited = partial(made, limits=limits())
    for name in vars(made):
        if name.startswith(("grammar_from", "validate_grammar", "is_validate", "parse_validate")):
            setattr(limited, name, getattr(made, name))
    vars(llguidance)["LLMatcher"] = limited
