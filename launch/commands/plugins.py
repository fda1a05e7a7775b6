"""`darts plugins`: the plug-ins of every kind and their options with default and meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pipeline.config.docs import option_documentation
from pipeline.plugins import interfaces, registry


def plugin_lines() -> Iterator[str]:
    """Yields the lines to print. Installed plug-ins are listed by metadata, not imported."""
    for kind in registry.PACKAGES:
        yield f"{kind}:"
        for name in registry.builtin_names(kind):
            cls = registry.find_plugin(kind, name)
            summary = (cls.__doc__ or _module_doc(cls)).strip().splitlines()[0]
            yield f"  {name:20} {summary}"
            yield from _options(registry.options_type(cls))
        for name, point in registry.entry_points(kind).items():
            source = point.dist.name if point.dist else point.value
            yield f"  {name:20} installed: {source} ({point.value})"
    yield "By name in the configuration (selector: dual_end), or as package.module:Class."


def _module_doc(cls: type[Any]) -> str:
    import sys

    return sys.modules[cls.__module__].__doc__ or ""


def _options(options: type[interfaces.Options]) -> Iterator[str]:
    meanings = option_documentation(options)
    for field in msgspec.structs.fields(options):
        meaning = " ".join(meanings.get(field.name, "").split())
        yield f"      {field.name} = {field.default!r}: {meaning}"
