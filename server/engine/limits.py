"""How much work a constraint may make for one token, in the engine: vLLM sets no limit of its own.

A mask is computed between two steps, while everybody waits. The library gives up at 50,000 parts of a grammar that may
come next, which takes it half a second; here it does at 2,000. JSON schemas and grammars that people write have some
hundred. A request that goes over the limit ends, and no other.

A plugin of vLLM's: it calls `install` in each of its processes. pyproject.toml has the entry point.
"""

from functools import partial

import llguidance

_MOST_PARTS = 2_000


def limits() -> llguidance.LLParserLimits:
    """Returns the limits of one constraint."""
    return llguidance.LLParserLimits(step_max_items=_MOST_PARTS)


def install() -> None:
    """Sets the limits for whoever makes a matcher without any. May be called again."""
    made = vars(llguidance)["LLMatcher"]
    if isinstance(made, partial):
        return
    limited = partial(made, limits=limits())
    for name in vars(made):
        if name.startswith(("grammar_from", "validate_grammar", "is_validate", "parse_validate")):
            setattr(limited, name, getattr(made, name))
    vars(llguidance)["LLMatcher"] = limited
