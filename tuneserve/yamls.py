"""Loads YAML files and values, and refuses duplicate keys.

By default the YAML library takes the last one, and a model, a tenant or a setting would be lost silently.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tuneserve.errors import UserError

_MERGE = "tag:yaml.org,2002:merge"


def read(path: Path, hint: str = "") -> Any:
    """Returns the content of a YAML file. Raises UserError naming the file, with the hint if it can't be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", hint) from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}", hint) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def parse(text: str) -> Any:
    """Returns the content of a YAML text. Raises yaml.YAMLError, a MarkedYAMLError if the line is known."""
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:
        # Errors that the library does not convert: an invalid date, a number of thousands of digits.
        raise yaml.YAMLError(f"a value can't be read: {error}") from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Checked before `<<` merges other keys: a mapping's own keys may override those.
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            # Compared as text, because 1 and "1" become the same name.
            forms = {key, str(key)} if isinstance(key, Hashable) else set()
            if forms & seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is a duplicate key", problem_mark=key_node.start_mark)
            seen |= forms
        return super().construct_mapping(node, deep)
