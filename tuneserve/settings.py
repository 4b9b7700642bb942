"""The basis of settings files: pydantic models, and errors of one line that name the key.

Each package has its models beside its code: `finetune/config.py`, `server/config.py`, `server/call/tenants_file.py`.
Their fields define the type, the bounds, the default and the description of a setting; `tuneserve schema` and
docs/settings.md are generated from them. This module knows none of the settings.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from tuneserve.errors import UserError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """Immutable settings. Unknown keys are refused, and so are values of another type: "8" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Refused(ValueError):
    """Raised in a validator, for rules that types and bounds can't express. `key` is relative to the validated
    value.
    """

    def __init__(self, message: str, hint: str = "", key: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.key = key


def _from_base(value: object, info: ValidationInfo) -> object:
    return (info.context or Path()) / value if isinstance(value, str) else value


# In YAML, a sequence is a list, not a tuple, and the key of a mapping may look like a number.
Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Named = BeforeValidator(
    lambda value: {str(key): one for key, one in value.items()} if isinstance(value, Mapping) else value
)

Text = Annotated[str, Field(pattern=r"\S")]
# Only the first error is reported, of possibly thousands of texts.
Texts = Annotated[tuple[str, ...], Field(fail_fast=True), Listed]
Local = Annotated[Path, BeforeValidator(_from_base)]  # relative to the file
Count = Annotated[int, Field(ge=1)]


def matching(pattern: re.Pattern[str]) -> Any:
    """Returns an annotation that adds a pattern to the JSON Schema; a validator checks it with its own message."""
    return Field(json_schema_extra={"pattern": f"^{pattern.pattern}$"})


S = TypeVar("S", bound=Settings)


def build(kind: type[S], values: object, where: str = "", base: Path = Path()) -> S:
    """Returns checked settings. Relative paths are relative to `base`.

    Raises UserError with `where`, the key, and what is allowed.
    """
    try:
        return kind.model_validate(values, context=base)
    except ValidationError as error:
        raise _all_explained(kind, error, where)[0] from None


def problems(kind: type[Settings], values: object, where: str = "", base: Path = Path()) -> list[UserError]:
    """Returns all errors of which `build` raises the first."""
    try:
        kind.model_validate(values, context=base)
    except ValidationError as error:
        return _all_explained(kind, error, where)
    return []


def wrong(kind: type[Settings], key: str, value: object) -> UserError | None:
    """Returns the error of one setting's value, independent of the other settings; None if it is valid."""
    try:
        kind.model_validate({key: value})
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if problem["loc"][:1] == (key,):
                return _explained(kind, problem, "")
    return None


def type_of(kind: type[Settings], key: str) -> str:
    """Returns the type of a setting, in words."""
    return in_words(_at(kind.model_json_schema(), [key]))[0]


# Expected types, by pydantic's names of errors.
_EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "is_instance_of": "text",
    "string_type": "text",
    "tuple_type": "a list",
}
_MAPPING = ("dict_type", "mapping_type", "model_type")
# Unknown keys are reported first: a misspelt key may be the reason why another is missing.
_ORDER = {"extra_forbidden": 0, "missing": 1}


def _all_explained(kind: type[Settings], error: ValidationError, where: str) -> list[UserError]:
    found = sorted(error.errors(include_url=False), key=lambda one: _ORDER.get(one["type"], 2))
    return [_explained(kind, one, where) for one in found]


def _explained(kind: type[Settings], problem: "ErrorDetails", where: str) -> UserError:
    path, value, hint = [*problem["loc"]], problem["input"], ""
    if path and path[-1] == "[key]":
        del path[-2:]
    schema = kind.model_json_schema()
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        key = path.pop()
        known = _at(schema, path).get("properties", {})
        close = difflib.get_close_matches(str(key), known, n=1)
        message = f"unknown key {key!r}"
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"
    elif problem["type"] == "missing":
        message, hint = f"{path[-1]} is missing", f"{path[-1]}: {allowed(_at(schema, path))}"
        del path[-1]
    elif isinstance(refused := problem.get("ctx", {}).get("error"), Refused):
        message, hint = str(refused), refused.hint
        path += [refused.key] if refused.key is not None else []
    elif problem["type"] in _MAPPING:
        message = f"expected a mapping of keys to values, found {type(value).__name__}"
    else:
        expected = _EXPECTED.get(problem["type"])
        message = f"expected {expected}, found {value!r}" if expected else f"{value!r} is not allowed"
        hint = f"allowed: {allowed(_at(schema, path))}"
        if expected == "text" and isinstance(value, int | float):
            hint += " (quote words such as yes, no and numbers)"
    return UserError(": ".join(part for part in (where, _dotted(path), message) if part), hint)


def _dotted(path: Iterable[int | str]) -> str:
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part if part.isprintable() else repr(part)}" for part in path
    ]
    return "".join(parts).removeprefix(".")


def allowed(schema: Mapping[str, Any]) -> str:
    """Returns the values that a JSON Schema of `Settings` allows, in words: types and bounds."""
    kind, bounds = in_words(schema)
    return ", ".join(filter(None, (kind, bounds)))


def in_words(schema: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the type that a JSON Schema allows, and its bounds, or "" if there are none."""
    if "anyOf" in schema:
        return " or ".join(allowed(one) for one in schema["anyOf"] if one.get("type") != "null"), ""
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return "", ("one of " if len(choices) > 1 else "") + ", ".join(map(str, choices))
    match schema.get("type"):
        case "array":
            return f"a list of {allowed(schema['items'])}", ""
        case "object":
            keys = ", ".join(schema.get("propertyNames", {}).get("enum", ["keys"]))
            values = inner(schema)
            return f"a mapping of {keys} to {allowed(values) if 'type' in values else 'values'}", ""
        case "boolean":
            return "true or false", ""
        case "integer" | "number" as number:
            low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
            words = "" if low is None else f"{low} or more" if high is None else f"{low} to {high}"
            if above is not None:
                words = f"above {above}" if high is None else f"above {above}, at most {high}"
            return "a whole number" if number == "integer" else "a number", words
    return "text", ""


def _at(schema: Mapping[str, Any], path: list[int | str]) -> Mapping[str, Any]:
    """Returns the part of a model's JSON Schema for the value at `path`."""
    found = schema
    for part in path:
        found = resolved(found.get("properties", {}).get(part) or inner(found), schema)
    return found


def inner(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of a JSON Schema for the values of a list or a mapping."""
    found = schema.get("items") or schema.get("additionalProperties")
    return found if isinstance(found, Mapping) else next(iter(schema.get("patternProperties", {}).values()), {})


def resolved(found: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a part of a JSON Schema with its reference resolved, and without null as an alternative."""
    some = [one for one in found.get("anyOf", ()) if one.get("type") != "null"]
    if len(some) == 1:
        found = {**{key: one for key, one in found.items() if key != "anyOf"}, **some[0]}
    if "$ref" in found:
        found = {**found, **schema["$defs"][found["$ref"].removeprefix("#/$defs/")]}
    return found
