"""What `darts replay` does: replays recordings, prints the outcome, returns the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.replay.exact_replay import Replayed, fresh_coordinator, replay
from launch.replay.nondeterminism import suspect
from pipeline.coordinator.state import Plugins
from pipeline.plugins.registry import PluginError
from pipeline.recording.frames import RecordingError
from pipeline.recording.reader import Recording
from pipeline.stage.build import make_plugins
from pipeline.system.terminal_text import counted, printable


def recordings_of(path: Path) -> list[Path]:
    """The file itself, or all recordings of a run's folder, oldest first.

    Raises: RecordingError if there is none.
    """
    if path.is_file():
        return [path]
    found = sorted((path / "recordings").glob("stage-*.darts"))
    if not found:
        why = "no recording: debug.record=true makes one while a run goes on"
        raise RecordingError(f"{path}: {why}")
    return found


def recorded_plugins(recording: Recording, *, imports: bool) -> Plugins:
    """Fresh plug-ins, as the recording names them. Raises PluginError, RecordingError.

    Args:
        imports: import modules that the file names (`package.module:Class`).
    """
    named = recording.header.plugins
    lacking = Plugins.__struct_fields__ - named.keys() if named else Plugins.__struct_fields__
    if lacking:
        raise RecordingError(f"{recording.path}: the header names no {', '.join(lacking)}")
    for kind, plugin in named.items():
        if ":" in plugin.name and not imports:
            raise PluginError(
                f"{recording.path} names the {kind} {plugin.name!r}: its module would be "
                "imported; if you trust the file, say --import"
            )
    try:
        return make_plugins(named, recording.header.settings.seed)
    except ValueError as error:  # options that are not those of this version
        raise RecordingError(f"{recording.path}: the plug-ins in the header: {error}") from error


def replay_same(paths: Sequence[Path], *, imports: bool) -> int:
    """Replays each and says whether its commands are equal; 1 at the first that is not.

    Raises: OSError, RecordingError, PluginError.
    """
    for path in paths:
        recording = Recording(path)
        plugins = recorded_plugins(recording, imports=imports)
        found = replay(recording, fresh_coordinator(recording, plugins))
        for line in outcome_lines(recording, found, imports=imports):
            print(printable(line))  # the file has a say in it
        if found.difference is not None:
            return 1
    return 0


def outcome_lines(recording: Recording, found: Replayed, *, imports: bool) -> list[str]:
    """The outcome of one replay, for people."""
    path, header = recording.path, recording.header
    counts = f"{counted(found.events, 'event')}, {counted(found.commands, 'command')}"
    difference = found.difference
    if difference is None:
        lines = [f"{path}: {counts}, equal"]
        return [*lines, f"  the recording is {found.end}"] if found.end else lines

    def fresh() -> Plugins:
        return recorded_plugins(recording, imports=imports)

    place = f"command {difference.command}" if difference.command else "an exception"
    return [
        f"{path}: {counts}, equal; then a difference",
        f"  event {difference.event}, {difference.name} at {difference.now:.3f} s: {place}",
        f"    recorded: {difference.expected}",
        f"    replayed: {difference.came}",
        f"  {suspect(recording, fresh, difference.event)}",
        f"  recorded by darts {header.darts}",
    ]
