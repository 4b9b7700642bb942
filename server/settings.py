"""A mapping, as YAML or JSON gives it, into a frozen dataclass. Refuses unknown keys and wrong types, by their path.

It knows nothing of what the keys mean; `config.py` says which there are and checks their values.
"""

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuneserve.errors import UserError

T = TypeVar("T")

_EXPECTED = {str: "text", Path: "text", int: "a whole number", float: "a number", bool: "true or false"}


def build(kind: type[T], values: Any, where: str, base: Path = Path()) -> T:
    """Returns `kind(**values)`. Relative paths are taken from `base`. Raises UserError naming the key."""
    types_ = typing.get_type_hints(kind)
    given = mapping(values, where)
    for key in given:
        if key not in types_:
            close = difflib.get_close_matches(str(key), types_, n=1)
            hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(types_)}"
            raise UserError(f"{where}: unknown key {key!r}", hint)
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name not in given and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{where}: {entry.name} is missing")
    return kind(**{key: _typed(value, types_[key], f"{where}: {key}", base) for key, value in given.items()})


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Returns a mapping as it is. Raises UserError for anything else."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a mapping of keys to values, found {type(value).__name__}")
    return dict(value)


def _typed(value: Any, kind: Any, where: str, base: Path) -> Any:
    if isinstance(kind, types.UnionType):  # X | None
        return None if value is None else _typed(value, kind.__args__[0], where, base)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return tuple(_typed(one, arguments[0], f"{where}[{index}]", base) for index, one in enumerate(value))
    if origin is not None:
        return {str(k): _typed(v, arguments[1], f"{where}.{k}", base) for k, v in mapping(value, where).items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return build(kind, value, where, base)
    if kind is Path and isinstance(value, str):
        return base / value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, and not to anybody else.
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where}: expected {_EXPECTED[kind]}, found {value!r}")
