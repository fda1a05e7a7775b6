"""`darts config`: the schema of configuration files, and the recipes that they may name."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import exit_with_error

_HELP = "Show what configuration files and recipes contain."
config = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)


@config.command()
def schema() -> None:
    """Print the JSON Schema of configuration files.

    It has every key with meaning, range and default.

    Editors use it to complete and check settings; installed plug-ins are included. Name it in the
    first line of a configuration:

    darts config schema > schema.json
    # yaml-language-server: $schema=schema.json
    """
    import json

    from pipeline.config.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))


@config.command()
def recipes(
    name: Annotated[str, typer.Argument(help="show the settings of this one")] = "",
) -> None:
    """List the recipes: published methods as settings.

    They are chosen by `recipe=NAME` (docs/methods.md).

    darts config recipes dars
    darts train configs/quickstart.yaml recipe=dars
    """
    from pipeline.config import recipes as found
    from pipeline.system.terminal_text import printable
    from pipeline.system.untrusted_files import UnreadableFile, read_text

    if name:
        if (path := found.recipe_path(name)) is None:
            exit_with_error(f"{name}: no file of such a recipe; darts config recipes lists them", 2)
        try:
            typer.echo(printable(read_text(path)).rstrip())
        except UnreadableFile as error:
            exit_with_error(f"{error}; expected a recipe", 2)
        return
    for about in found.builtin_recipes():
        typer.echo(f"{about.name:24} {about.title} ({about.source}): {about.sentence}")
    for installed, point in found.installed().items():
        typer.echo(f"{installed:24} installed: {point.value}")
