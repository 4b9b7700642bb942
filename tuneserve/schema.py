"""The settings files as JSON Schema, for editors, and as a page for people. `make settings` writes both into docs/.

python -m tuneserve.schema DOCS      writes DOCS/schemas/NAME.json and DOCS/settings.md
"""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneserve.settings import Settings, in_words, inner, resolved

# The module and the model of each file; imported when needed.
FILES = {
    "finetune": ("tuneserve.finetune.config", "FinetuneConfig"),
    "serve": ("tuneserve.server.config", "ServerConfig"),
    "retrain": ("tuneserve.retrain.policy", "RetrainConfig"),
    "tenants": ("tuneserve.server.call.tenants_file", "TenantsFile"),
}

_HEAD = """# Settings

Every key of the four files. `make settings` generates this page and `docs/schemas/` from the code; don't edit them.
Unknown keys, values of the wrong type and values out of bounds are refused, with an error that names the key. Relative
paths are relative to the file's directory.

An editor with a YAML language server completes and checks a file whose first line names its schema. The schemas are in
`docs/schemas/`, and `tuneserve schema finetune`, `serve`, `retrain` or `tenants` prints one:

    # yaml-language-server: $schema=serve.json
"""
_TABLE = "| key | type | default | allowed | what it does |\n|---|---|---|---|---|"


def json_schema(name: str) -> dict[str, Any]:
    """Returns the JSON Schema of one of FILES."""
    module, model = FILES[name]
    kind: type[Settings] = getattr(importlib.import_module(module), model)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}


def in_json(name: str) -> str:
    """Returns the JSON Schema of one of FILES as text."""
    return json.dumps(json_schema(name), indent=2, ensure_ascii=False)


def page() -> str:
    """Returns docs/settings.md."""
    parts = [_HEAD]
    for name in FILES:
        schema = json_schema(name)
        parts.append(f"## {name}\n\n{schema['description']}\n")
        parts += _tables(schema, schema, "")
    return "\n".join(parts)


def _tables(found: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yields a table of settings, followed by those of nested settings."""
    rows, below = [], []
    for key, value in found["properties"].items():
        one = resolved(value, schema)
        many = resolved(inner(one), schema)
        kind, bounds = in_words(one)
        if "properties" in one:
            kind = "settings, below"
            below.append((f"{path}{key}", one))
        elif "properties" in many:
            kind = "a mapping of names to settings, below"
            below.append((f"{path}{key}.NAME", many))
        default = f"`{_plain(value['default'])}`" if "default" in value else ""
        shown_default = "required" if key in found.get("required", ()) else default
        rows.append(f"| `{key}` | {kind or 'text'} | {shown_default} | {bounds} | {value['description']} |")
    yield "\n".join([_TABLE, *rows, ""])
    for title, one in below:
        yield f"### {title}\n\n{one['description']}\n"
        yield from _tables(one, schema, f"{title}.")


def _plain(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else json.dumps(default, ensure_ascii=False)


def main(docs: Path) -> None:
    """Writes the schemas and the page."""
    (docs / "schemas").mkdir(exist_ok=True)
    for name in FILES:
        (docs / "schemas" / f"{name}.json").write_text(in_json(name) + "\n", encoding="utf-8")
    (docs / "settings.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
