"""What the commands share: overrides, reading a configuration, and an end with one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings as key=value: step.prompts=32 selector=dual_end seed=1"),
]
CONFIG_HELP = "a YAML file; configs/quickstart.yaml names every setting"


def fail(text: object, status: int = 1) -> NoReturn:
    typer.echo(f"darts: {text}", err=True)
    raise typer.Exit(status)


def load_config(config: Path, overrides: list[str] | None) -> Any:
    from pipeline.configfile import ConfigError, load

    try:
        return load(config, overrides or ())
    except ConfigError as error:
        fail(f"{len(error.problems)} problem(s) in the configuration\n{error}", 2)
