"""The coordinator of a stage, recorded if the run is to be (`debug.record`)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence

import msgspec

from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.recording.frames import Header, command_bytes
from pipeline.recording.writer import RecordingWriter
from pipeline.stage.build import Parts, deciding


class RecordedCoordinator:
    """Hands events to the coordinator; `say` is told if a recording has to stop, and why."""

    def __init__(self, parts: Parts, say: Callable[[str], None]) -> None:
        self._parts, self._say = parts, say
        self._writer: RecordingWriter | None = None

    def begin(
        self, restored: bytes = b"", now: float = 0.0, commands: Sequence[AnyCommand] = ()
    ) -> None:
        """Begin to record, unless it has begun: from the start of the run, or from a snapshot that
        was restored at `now` with these commands."""
        if not self._parts.config.debug.record or self._writer is not None:
            return
        header = self._header(restored, now, commands)
        path = self._parts.run.recording(self._parts.incarnation)
        self._writer = RecordingWriter(path, header, self._say)

    def handle(self, event: AnyEvent, now: float) -> list[AnyCommand]:
        """The coordinator's answer. Raises as it does; then that is recorded."""
        try:
            commands = self._parts.coordinator.handle(event, now)
        except Exception as error:
            if self._writer is not None:
                self._writer.record(now, event, (), fault=str(error))
            raise
        if self._writer is not None:
            self._writer.record(now, event, commands)
        return commands

    def close(self) -> None:
        """All is on the disk."""
        if self._writer is not None:
            self._writer.close()

    def _header(self, restored: bytes, now: float, commands: Sequence[AnyCommand]) -> Header:
        parts, core = self._parts, self._parts.coordinator.core
        return Header(
            darts=importlib.metadata.version("darts-rl"),
            incarnation=parts.incarnation,
            config=msgspec.to_builtins(parts.config),
            settings=core.settings,
            plugins=deciding(parts.config),
            prompt_tokens=list(core.prompt_tokens),
            tags=[item.tag for item in parts.data["train"].items],
            variants={name: list(tokens) for name, tokens in core.variants.items()},
            solutions=list(core.solutions),
            snapshot=restored,
            restored_at=now,
            restored=tuple(command_bytes(command) for command in commands),
        )
