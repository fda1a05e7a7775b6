"""Feeds a recording into a fresh coordinator and compares every command, bit for bit.

Turns (recording, plug-ins) into a count or the first difference. What the stage recorded is
believed in nothing: an event that the coordinator cannot take is a difference like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import msgspec

from pipeline.coordinator import snapshot
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.coordinator.state import Plugins
from pipeline.recording.frames import (
    Entry,
    RecordingError,
    command_bytes,
    command_fields,
    decode_snapshot,
)
from pipeline.recording.reader import Recording

_SHOWN = 300  # characters of a value in a difference


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first place where the replay says something else."""

    event: int  # from 1; 0: the restore at the recording's start
    name: str  # of the event's class
    now: float  # by the recording's clock
    command: int  # from 1; 0: an exception, recorded or replayed
    expected: str
    came: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A replay as far as it was equal. `end`: why the file has no more; '' if it is whole."""

    events: int
    commands: int
    end: str = ""
    difference: Difference | None = None


class Observer(Protocol):
    """Sees every event with the commands that the replay gave; as of a simulation."""

    def record_event(
        self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]
    ) -> object: ...


def fresh_coordinator(recording: Recording, plugins: Plugins) -> Coordinator:
    """The coordinator that the recording's stage began with, nothing restored.

    Args:
        plugins: fresh ones, of the recorded names and options.
    """
    header = recording.header
    return Coordinator(
        header.settings,
        plugins,
        header.prompt_tokens,
        header.tags,
        header.variants,
        header.solutions,
    )


def replay(
    recording: Recording,
    coordinator: Coordinator,
    observers: Sequence[Observer] = (),
    *,
    last: int | None = None,
) -> Replayed:
    """Replay a recording. Raises OSError, RecordingError.

    Args:
        coordinator: a fresh one, see `fresh_coordinator`.
        last: number of the event to end with; None: all.
    """
    found = _restored(recording, coordinator)
    if isinstance(found, Difference):
        return Replayed(events=0, commands=0, difference=found)
    commands, number = found, 0
    for number, entry in enumerate(recording.entries(), start=1):
        answer, fault = _answer(coordinator, entry)
        difference = _compared(number, entry, answer, fault)
        if difference is not None:
            return Replayed(events=number - 1, commands=commands, difference=difference)
        commands += len(answer)
        for observer in observers:
            observer.record_event(entry.now, entry.event, answer)
        if number == last:
            break
    return Replayed(events=number, commands=commands, end=recording.end)


def _restored(recording: Recording, coordinator: Coordinator) -> int | Difference:
    """How many commands the restore of a resumed run gave."""
    header = recording.header
    if not header.snapshot:
        return 0
    try:
        saved = decode_snapshot(header.snapshot)
    except ValueError as error:
        raise RecordingError(f"{recording.path}: the snapshot in the header: {error}") from error
    fault, commands = "", list[AnyCommand]()
    try:
        commands = snapshot.restore(coordinator, saved, header.restored_at)
    except Exception as error:  # of a plug-in, or of a state that does not add up
        fault = f"{type(error).__name__}: {error}"
    first = (header.restored_at, 0, "the restore of a resumed run")
    return _difference(*first, header.restored, "", commands, fault) or len(commands)


def _answer(coordinator: Coordinator, entry: Entry) -> tuple[list[AnyCommand], str]:
    """The replay's commands, or what it raised."""
    try:
        return coordinator.handle(entry.event, entry.now), ""
    except Exception as error:  # a plug-in's, or of an event that no stage would hand over
        return [], str(error)


def _compared(
    number: int, entry: Entry, commands: Sequence[AnyCommand], fault: str
) -> Difference | None:
    what = (entry.now, number, type(entry.event).__name__)
    return _difference(*what, entry.commands, entry.fault, commands, fault)


def _difference(
    now: float,
    number: int,
    name: str,
    recorded: Sequence[bytes],
    recorded_fault: str,
    commands: Sequence[AnyCommand],
    fault: str,
) -> Difference | None:
    def differs(command: int, expected: str, came: str) -> Difference:
        return Difference(
            event=number, name=name, now=now, command=command, expected=expected, came=came
        )

    if fault != recorded_fault:
        return differs(0, recorded_fault or "no exception", fault or "no exception")
    replayed = [command_bytes(command) for command in commands]
    for place, (old, new) in enumerate(zip(recorded, replayed, strict=False), start=1):
        if old != new:
            return differs(place, *_apart(_fields(old), _fields(new)))
    if len(recorded) == len(replayed):
        return None
    place = min(len(recorded), len(replayed))
    rest = [recorded[place:], replayed[place:]]
    expected, came = (_shown(_fields(more[0])) if more else "no more commands" for more in rest)
    return differs(place + 1, expected, came)


def _fields(recorded: bytes) -> dict[str, Any]:
    try:
        return command_fields(recorded)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {"type": f"{len(recorded)} bytes that are no command"}


def _apart(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """Both commands, by their class and the fields that differ."""
    if old.get("type") != new.get("type"):
        return _shown(old), _shown(new)
    old, new = _flat(old), _flat(new)
    differing = {k for k in (*old, *new) if old.get(k) != new.get(k) or (k in old) != (k in new)}
    kept = {"type", "what", *differing}
    one, other = ({name: of[name] for name in of if name in kept} for of in (old, new))
    return _shown(one), _shown(other)


def _flat(command: dict[str, Any]) -> dict[str, Any]:
    """The command with the columns of a report among its fields."""
    fields: object = command.get("fields")
    if not isinstance(fields, dict):
        return command
    columns = cast(dict[str, Any], fields)
    rest = {name: value for name, value in command.items() if name != "fields"}
    return {**rest, **{f"fields.{name}": value for name, value in columns.items()}}


def _shown(command: dict[str, Any]) -> str:
    """`Generate(engine='e0', ...)`, shortened."""
    names = sorted(command.keys() - {"type"}, key=lambda name: (name != "what", name))
    fields = ", ".join(f"{name}={command[name]!r}" for name in names)
    text = f"{command.get('type', '?')}({fields})"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
