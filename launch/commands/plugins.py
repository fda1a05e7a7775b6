"""`darts plugins`: the plug-ins of every kind and their options with default and meaning."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import exit_with_error

if TYPE_CHECKING:
    from pipeline.plugins import interfaces

_NARROW = 40
_MOST = 120
"""Columns of a line: longer ones are hard to read."""


def plugins_command(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="only these, such as selector or reward")
    ] = None,
) -> None:
    """List the plug-ins of each kind, or of one, and their options.

    darts plugins selector
    """
    from pipeline.plugins import registry
    from pipeline.plugins.ranges import did_you_mean

    kinds = list(registry.PACKAGES)
    if kind is not None and kind not in kinds:
        there = f"{did_you_mean(kind, kinds)}; there are {', '.join(kinds)}"
        exit_with_error(f"no kind of plug-in is called {kind!r}{there}", 2)
    width = max(_NARROW, min(_MOST, shutil.get_terminal_size().columns))
    typer.echo("\n".join(plugin_lines([kind] if kind else kinds, width)))


def plugin_lines(kinds: list[str], width: int) -> Iterator[str]:
    """Yields the lines to print. Installed plug-ins are listed by metadata, not imported."""
    from pipeline.plugins import registry

    for kind in kinds:
        yield f"{kind}:"
        for name in registry.builtin_names(kind):
            cls = registry.find_plugin(kind, name)
            summary = (cls.__doc__ or _module_doc(cls)).strip().split("\n\n")[0]
            yield from _wrapped(f"  {name:20} ", " ".join(summary.split()), 23, width)
            yield from _options(registry.options_type(cls), width)
        for name, point in registry.entry_points(kind).items():
            source = point.dist.name if point.dist else point.value
            yield f"  {name:20} installed: {source} ({point.value})"
    yield "By name in the configuration (selector: dual_end), or as package.module:Class."


def _wrapped(head: str, text: str, indent: int, width: int) -> list[str]:
    return textwrap.wrap(head + text, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def _module_doc(cls: type[Any]) -> str:
    import sys

    return sys.modules[cls.__module__].__doc__ or ""


def _options(options: type[interfaces.Options], width: int) -> Iterator[str]:
    import msgspec

    from pipeline.config.docs import option_documentation

    meanings = option_documentation(options)
    for field in msgspec.structs.fields(options):
        meaning = " ".join(meanings.get(field.name, "").split())
        yield from _wrapped(f"      {field.name} = {field.default!r}: ", meaning, 10, width)
