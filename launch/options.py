"""What the commands share: overrides, reading a configuration, and an end with one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pipeline.system.run_folder import RunFolder

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings as key=value: step.prompts=32 selector=dual_end seed=1"),
]
CONFIG_HELP = "a YAML file; configs/quickstart.yaml names every setting"
RUN_HELP = "a run's folder"


def exit_with_error(text: object, status: int = 1) -> NoReturn:
    from pipeline.system.terminal_text import printable

    typer.echo(f"darts: {printable(str(text))}", err=True)
    raise typer.Exit(status)


def load_config(config: Path, overrides: list[str] | None) -> Any:
    from pipeline.config.load import ConfigError, load

    try:
        return load(config, overrides or ())
    except ConfigError as error:
        count = len(error.problems)
        cure = "mend them there; docs/configuration.md says what each key takes"
        exit_with_error(f"{count} problem(s) in the configuration\n{error}\n{cure}", 2)


def run_folder(path: Path) -> RunFolder:
    """The folder of a run, running or not; ends with a clear line if it is none."""
    from pipeline.system.run_folder import RunError, RunFolder

    try:
        run = RunFolder(path.absolute())
    except RunError as error:
        exit_with_error(error, 2)
    if not path.is_dir():
        exit_with_error(f"{path}: there is no such folder", 2)
    if not run.config.exists():
        exit_with_error(f"{path}: no run: it has no {run.config.name}", 2)
    return run
