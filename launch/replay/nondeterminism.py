"""Finds the plug-in that made a replay differ: which one answers the same question differently.

The event is replayed twice more up to the difference, with every call of a plug-in noted. The
first call with unlike answers names one that depends on something else than what it is asked: a
clock, the process's hash seed, a global. Where both agree, the plug-ins asked in that very event
are named, with what they answered: their code, or darts, is not what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from launch.replay.exact_replay import fresh_coordinator, replay
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.coordinator.state import Plugins
from pipeline.recording.reader import Recording

_SHOWN = 160  # characters of an answer
Call = tuple[str, str, str]
"""Kind and class of the plug-in, method, answer."""


class _Noted:
    """A plug-in whose calls are noted; everything else of it is its own."""

    def __init__(self, kind: str, plugin: object, calls: list[Call]) -> None:
        self._kind, self._plugin, self._calls = kind, plugin, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._plugin, name)
        if not callable(found) or name in ("state", "restore"):
            return found
        call = cast("Callable[..., Any]", found)

        def noted(*arguments: Any, **named: Any) -> Any:
            answer = call(*arguments, **named)
            if hasattr(answer, "__next__"):  # a selector may be a generator
                answer = list(answer)
            about = f"{self._kind} {type(self._plugin).__name__}"
            self._calls.append((about, name, repr(answer)))
            return answer

        return noted


class _Marks:
    """Where each event's calls end."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls, self.last = calls, 0

    def record_event(self, now: float, event: AnyEvent, commands: Sequence[AnyCommand]) -> None:
        del now, event, commands
        self.last = len(self._calls)


def suspect(recording: Recording, make: Callable[[], Plugins], event: int) -> str:
    """Says in a line which plug-in is to blame for the difference at this event.

    Args:
        make: fresh plug-ins, for each replay.
    """
    runs: list[list[Call]] = []
    begins = 0
    for _ in range(2):
        calls: list[Call] = []
        plugins = make()
        noted = {
            kind: _Noted(kind, getattr(plugins, kind), calls) for kind in plugins.__struct_fields__
        }
        marks = _Marks(calls)
        coordinator = fresh_coordinator(recording, msgspec.structs.replace(plugins, **noted))
        replay(recording, coordinator, [marks], last=event)
        runs.append(calls)
        begins = marks.last
    for one, other in zip(*runs, strict=False):
        if one != other:
            about, method, answer = one
            return (
                f"{about} is not deterministic: asked the same {method}() twice, it said "
                f"{answer:.{_SHOWN}} and {other[2]:.{_SHOWN}}"
            )
    asked = dict.fromkeys(f"{about} {method}()" for about, method, _ in runs[0][begins:])
    if not asked:
        return "no plug-in was asked in this event: another version of darts recorded it?"
    return (
        f"asked in this event: {', '.join(asked)}; each says the same twice here, so its code, its "
        "options or darts are not those of the recording, or it reads what the recording lacks"
    )
