"""`darts config`: what a configuration file may say."""

from __future__ import annotations

import typer

config = typer.Typer(
    help="What a configuration file may say.", no_args_is_help=True, rich_markup_mode=None
)


@config.callback()
def group() -> None:
    """What a configuration file may say."""


@config.command()
def schema() -> None:
    """Print the JSON Schema of configuration files: every key with meaning, range and default.

    An editor completes and checks by it. Installed plug-ins are in it. Name it in the file's
    first line:

    darts config schema > schema.json
    # yaml-language-server: $schema=schema.json
    """
    import json

    from pipeline.config.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))
