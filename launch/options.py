"""Shared by the commands: overrides, reading a configuration, and ending with a clear message."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pipeline.system.run_folder import RunFolder


def user_path(text: str) -> Path:
    """Returns a path whose `~` stands for a home directory: a shell leaves that of --out=~/runs as
    it is, and a folder of that name would be made."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~somebody", whom nobody knows
        return Path(text)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings as key=value, such as step.prompts=32 selector=dual_end"),
]
CONFIG_HELP = "YAML file with the settings, such as configs/quickstart.yaml"
RUN_HELP = "folder of a run"


def exit_with_error(text: object, status: int = 1) -> NoReturn:
    from pipeline.system.terminal_text import printable

    typer.echo(f"darts: {printable(str(text))}", err=True)
    raise typer.Exit(status)


def exit_at_once(error: object, status: int = 1) -> NoReturn:
    """Ends the process outside of a command, as `exit_with_error` does inside."""
    import contextlib
    import os
    import sys

    from pipeline.system.terminal_text import printable

    with contextlib.suppress(OSError):  # the terminal may be what is broken
        print(f"darts: {printable(str(error))}", file=sys.stderr, flush=True)
    os._exit(status)


def load_config(config: Path, overrides: list[str] | None, *, weights: bool = True) -> Any:
    """Loads a configuration, or ends with all its problems. Without `weights`, those of a model on
    the hub are not fetched."""
    from pipeline.config import shipped
    from pipeline.config.load import ConfigError, load

    if (found := shipped.config_file(config)) != config:
        typer.echo(f"{config}: {found}, which came with darts", err=True)
    try:
        return load(config, overrides or (), weights=weights)
    except ConfigError as error:
        from pipeline.system.terminal_text import counted

        count = counted(len(error.problems), "problem")
        cure = "docs/configuration.md lists every key and its values"
        exit_with_error(f"{count} in the configuration\n{error}\n{cure}", 2)


def run_folder(path: Path) -> RunFolder:
    """Returns the folder of a run, running or not; ends with a message if it is none."""
    from pipeline.system.run_folder import RunError, RunFolder

    try:
        run = RunFolder(path.absolute())
        if not path.is_dir():
            exit_with_error(f"{path}: no such folder", 2)
        if not run.config.exists():
            exit_with_error(f"{path}: not the folder of a run: it has no {run.config.name}", 2)
    except RunError as error:
        exit_with_error(error, 2)
    except OSError as error:  # another user's
        exit_with_error(f"{path}: cannot be read: {error.strerror}", 2)
    return run


def as_json(document: object) -> str:
    """A document as JSON that a terminal can show: text that is not ASCII is escaped."""
    import json

    import msgspec

    return json.dumps(msgspec.to_builtins(document)).replace("\x7f", "\\u007f")
