"""The settings as JSON Schema, for editors: every key with its meaning, range and default.

Made of the same Structs that a configuration is read into, options of plug-ins included. A
plug-in that is installed, or named as `package.module:Class`, may have any options, as it is not
imported. Must not know what a setting does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.config.docs import default_of, in_full, option_documentation, sections
from pipeline.config.schema import Config
from pipeline.plugins import registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """One document for a whole configuration file."""
    options = {
        (kind, name): registry.options_type(registry.find_plugin(kind, name))
        for kind in registry.PACKAGES
        for name in registry.builtin_names(kind)
    }
    structs = list(dict.fromkeys([Config, *sections().values(), *options.values()]))
    references, components = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    named = {
        struct: found["$ref"].rpartition("/")[2]
        for struct, found in zip(structs, references, strict=True)
    }
    for struct, name in named.items():
        components[name] = _described(struct, components[name])
    components.pop("Plugin")
    whole = components.pop(named[Config])
    for kind in registry.PACKAGES:
        own = {
            name: {"$ref": f"#/$defs/{named[options[kind, name]]}"}
            for name in registry.builtin_names(kind)
        }
        meaning = whole["properties"][kind]["description"]
        default = default_of(Config, kind).name
        whole["properties"][kind] = {
            "description": meaning,
            "default": default,
            **_plugin(kind, own),
        }
    return {"$schema": DIALECT, **whole, "title": "darts", "$defs": components}


def _described(struct: type[Any], schema: dict[str, Any]) -> dict[str, Any]:
    """With the meaning of each key, its range in words, and without what the class is in Python."""
    texts = option_documentation(struct)
    for field in msgspec.structs.fields(struct):
        found = schema["properties"][field.name]
        found["description"] = in_full(texts[field.name], field.type)
        if not found["description"]:  # a section: its keys have theirs
            del found["description"]
    return {key: value for key, value in schema.items() if key != "description"}


def _plugin(kind: str, own: dict[str, Any]) -> dict[str, Any]:
    """A name, or one name with its options."""
    installed = {name: {"type": ["object", "null"]} for name in registry.entry_points(kind)}
    named = {name: {"anyOf": [{"type": "null"}, found]} for name, found in own.items()}
    return {
        "anyOf": [
            {"enum": [*own, *installed]},
            {"type": "string", "pattern": ":"},
            {
                "type": "object",
                "properties": {**named, **installed},
                "patternProperties": {":": {"type": ["object", "null"]}},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }
