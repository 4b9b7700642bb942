"""Checks structured output constraints, so that a malformed one never reaches the engine.

A constraint becomes an automaton over the model's whole vocabulary. Constraints that could make a huge automaton, or
take the engine's parser long, are refused by size. No error repeats any part of a constraint: a schema may contain
whatever a prompt may contain.

`structured` and `check_sizes` check only sizes. `check` reads the content of a constraint, which may take minutes while
holding the GIL: only the process of `constraints.py` calls it.
"""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, exceptions, validators

from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.engine.interface import StructuredOutput
from tuneserve.v1 import generation_pb2 as pb

FIELD = "sampling.structured_output"
# One of the libraries that an engine may be configured to use needs time quadratic in the size of a schema that
# consists of alternatives.
_MAX_SIZE = 32 << 10
_MAX_OPTIONS = 1024
_MAX_NESTING = 32
# And it unrolls the repetitions in a schema's patterns.
_MAX_REPEATS = 2000
_REPEATS = re.compile(r"\{(\d*),?(\d*)\}")


def structured(params: pb.StructuredOutput) -> StructuredOutput:
    """Returns the constraint, if its size is allowed. Raises InvalidInput."""
    with Violations() as wrong:
        check_sizes(wrong, params)
    if params.HasField("json_schema"):
        return StructuredOutput("json", params.json_schema)
    if params.HasField("regex"):
        return StructuredOutput("regex", params.regex)
    if params.HasField("grammar"):
        return StructuredOutput("grammar", params.grammar)
    return StructuredOutput("choice", list(params.choice.options))


def check_sizes(wrong: Violations, params: pb.StructuredOutput) -> None:
    """Checks the size of a constraint, and nothing of its content."""
    kind = params.WhichOneof("constraint")
    if kind is None:
        wrong.add(FIELD, "is unset; allowed: json_schema, regex, choice or grammar")
    elif kind == "choice":
        _check_options(wrong, params.choice.options)
    else:
        _check_size(wrong, kind, getattr(params, kind).strip() if kind == "grammar" else getattr(params, kind))


def check(params: pb.StructuredOutput) -> None:
    """Raises InvalidInput for a constraint that is not valid."""
    if params.HasField("json_schema"):
        _check_schema(params.json_schema)
    if params.HasField("regex"):
        _check_pattern(params.regex)


def _check_size(wrong: Violations, kind: str, text: str) -> None:
    if not text:
        wrong.add(f"{FIELD}.{kind}", "is empty")
    elif (size := len(text.encode())) > _MAX_SIZE:
        wrong.add(f"{FIELD}.{kind}", f"has {size} bytes; allowed: {_MAX_SIZE}")
    elif "\0" in text:
        wrong.add(f"{FIELD}.{kind}", "contains a NUL character")


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        _refuse("json_schema", f"is not JSON: line {error.lineno}, column {error.colno}")
    except (ValueError, RecursionError):
        _refuse("json_schema", "is not JSON that can be read")
    if not isinstance(schema, dict):
        _refuse("json_schema", "is not a JSON object")
    if _depth(schema) > _MAX_NESTING:
        _refuse("json_schema", f"is nested more than {_MAX_NESTING} deep")
    # Serialized again, so that no escape hides a brace.
    found = _REPEATS.findall(json.dumps(schema, ensure_ascii=False))
    repeats = sum(max(int(number.lstrip("0")[:10] or 0) for number in pair) for pair in found)
    if repeats > _MAX_REPEATS:
        _refuse("json_schema", f"has patterns that repeat {repeats} times in all; allowed: {_MAX_REPEATS}")
    try:
        dialect = schema.get("$schema")
        known = validators.validator_for(schema, Draft202012Validator) if isinstance(dialect, str) else None
        (known or Draft202012Validator).check_schema(schema)
    except exceptions.SchemaError as error:
        _refuse("json_schema", f"is not a JSON Schema{_keyword(error)}")
    except RecursionError:
        _refuse("json_schema", "is not a JSON Schema that can be checked")


def _keyword(error: exceptions.SchemaError) -> str:
    """Names the wrong keyword. The path is in the meta-schema, so it contains nothing from the caller."""
    path = [str(step) for step in error.absolute_schema_path]
    names = [name for before, name in pairwise(path) if before == "properties"]
    return f": its {names[-1]!r} is wrong" if names else ""


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        _refuse(
            "regex", "is not a regular expression" + ("" if error.pos is None else f"; see character {error.pos + 1}")
        )
    except (RecursionError, OverflowError):
        _refuse("regex", "is nested too deep, or repeats too often")


def _check_options(wrong: Violations, options: Sequence[str]) -> None:
    field = "choice.options"
    if not 1 <= len(options) <= _MAX_OPTIONS:
        wrong.add(f"{FIELD}.{field}", f"has {len(options)} entries; allowed: 1 to {_MAX_OPTIONS}")
        return
    for index, option in enumerate(options):
        _check_size(wrong, f"{field}[{index}]", option)
    if (size := sum(len(option.encode()) for option in options)) > _MAX_SIZE:
        wrong.add(f"{FIELD}.{field}", f"has {size} bytes; allowed: {_MAX_SIZE}")


def _depth(schema: Any) -> int:
    """Returns the levels of objects and arrays. Not recursive, because the depth is not bounded yet."""
    level, depth = [schema], 0
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return depth


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(field: str, description: str) -> NoReturn:
    # From None: the library's error contains the caller's text.
    raise InvalidInput(f"{FIELD}.{field}", description) from None
