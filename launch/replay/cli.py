"""The arguments of `darts replay`; its implementation is imported only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import exit_with_error


def replay_command(
    recording: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="recording, or the folder of a run: all of its recordings"
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="another selector, budget, batch or advantage, such as selector=all"),
    ] = None,
    imports: Annotated[
        bool,
        typer.Option(
            "--import",
            help="import the modules of plug-ins that the file names as package.module:Class",
        ),
    ] = False,
) -> None:
    """Replay a recorded run, and check that it decides the same.

    A run with debug.record=true writes a recording: every event with its time, and what was
    answered. No engine, learner or data is needed to replay it. The exit status is 1 at the first
    difference, which names the plug-in that is not deterministic.

    darts train configs/quickstart.yaml debug.record=true

    darts replay runs/quickstart

    With another selector, budget, batch or advantage, as in a configuration, the recorded prompts
    and responses are played again in virtual time, and a table compares it with the recorded one.
    A response that was cut short in the recording has no known end: how many of the members
    trained on rest on such estimates is in the table.

    darts replay runs/quickstart/recordings/stage-0001.darts selector=first_m

    darts replay runs/quickstart selector.dual_end.longest=2 budget.redundancy=1
    """
    import msgspec

    from launch.replay.command import recordings_of, replay_same
    from launch.replay.other_plugins import replay_other
    from pipeline.config.load import ConfigError
    from pipeline.plugins.registry import PluginError
    from pipeline.recording.frames import RecordingError

    try:
        paths = recordings_of(recording)
        if not overrides:
            raise typer.Exit(replay_same(paths, imports=imports))
        if len(paths) > 1:
            files = ", ".join(path.name for path in paths)
            exit_with_error(f"{recording}: was resumed; name one of its recordings: {files}", 2)
        raise typer.Exit(replay_other(paths[0], overrides, imports=imports))
    except (OSError, RecordingError, PluginError, ConfigError, msgspec.ValidationError) as error:
        exit_with_error(error, 2)
