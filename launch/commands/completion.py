"""`darts completion`: the script by which a shell completes commands and options."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

VARIABLE = "_DARTS_COMPLETE"
"""Set by that script when it asks for completions."""


class Shell(StrEnum):
    """Shells that can be told."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion_command(
    shell: Annotated[Shell, typer.Argument(help="the shell that you use")],
) -> None:
    """Print a script that completes commands in your shell.

    darts completion bash >> ~/.bashrc

    darts completion zsh > ~/.zfunc/_darts

    darts completion fish > ~/.config/fish/completions/darts.fish
    """
    from typer.completion import get_completion_script

    # `shell` is the name of one here; nothing is run by it, which tests/test_walls.py looks for.
    named = {"prog_name": "darts", "complete_var": VARIABLE, "shell": shell.value}
    typer.echo(get_completion_script(**named))


def answer_the_shell() -> None:
    """Teaches typer the shells' questions, if this is one; costs nothing otherwise."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init

        completion_init()
