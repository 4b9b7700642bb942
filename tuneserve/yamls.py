"""Our YAML files and values: read by one loader, which refuses a key that is given twice.

YAML itself takes the last one, and a model, a tenant or a setting would be gone without a word.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tuneserve.errors import UserError

_MERGE = "tag:yaml.org,2002:merge"


def read(path: Path, hint: str = "") -> Any:
    """Returns what a file says. Raises UserError naming it, with the hint where there is none that can be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", hint) from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}", hint) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def parse(text: str) -> Any:
    """Returns what a YAML text says. Raises yaml.YAMLError, a MarkedYAMLError where the line is known."""
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:
        # What the library lets through: a date without a month, a number of thousands of digits.
        raise yaml.YAMLError(f"a value is not what it looks like: {error}") from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Before what `<<` merges is added: a mapping's own keys go before those, and that is what it is for.
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            # As text, too: 1 and "1" are one name to whoever reads the mapping.
            forms = {key, str(key)} if isinstance(key, Hashable) else set()
            if forms & seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is a duplicate key", problem_mark=key_node.start_mark)
            seen |= forms
        return super().construct_mapping(node, deep)
