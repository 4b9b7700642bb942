"""Our YAML files and values: read by one loader, which refuses a key that is given twice.

YAML itself takes the last one, and a model, a tenant or a setting would be gone without a word.
"""

from collections.abc import Hashable
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


def parse(text: str) -> Any:
    """Returns what a YAML text says. Raises yaml.YAMLError, a MarkedYAMLError where the line is known."""
    return yaml.load(text, _Loader)


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
