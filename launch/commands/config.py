"""`darts config`: the schema of configuration files."""

from __future__ import annotations

import typer

_HELP = "Show what configuration files may contain."
config = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)


@config.callback(help=_HELP)
def group() -> None:
    """Keeps `schema` a subcommand: typer makes an only command the program."""


@config.command()
def schema() -> None:
    """Print the JSON Schema of configuration files: every key with meaning, range and default.

    Editors use it to complete and check settings; installed plug-ins are included. Name it in the
    first line of a configuration:

    darts config schema > schema.json
    # yaml-language-server: $schema=schema.json
    """
    import json

    from pipeline.config.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))
