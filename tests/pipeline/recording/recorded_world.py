"""The coordinator's random world, recorded as a stage records it."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.setting_types import Plugin
from pipeline.coordinator import snapshot
from pipeline.coordinator.events import AnyCommand, AnyEvent
from pipeline.recording.frames import Header, command_bytes, encode_value
from pipeline.recording.writer import RecordingWriter
from tests.pipeline.coordinator.world import World, plugins_of, settings_of

PLUGINS = {
    "prompt_order": Plugin(name="shuffled"),
    "budget": Plugin(name="uniform", options={"redundancy": 1.5}),
    "selector": Plugin(name="first_m"),
    "batch": Plugin(name="fifo"),
    "advantage": Plugin(name="grpo", options={"drop_equal": True}),
}
"""What `plugins_of` makes, as a header names it."""


class RecordedWorld(World):
    """Writes everything to `path`; `close()` ends it.

    Args:
        cut: a snapshot of an earlier world that it goes on from, restored here.
    """

    def __init__(
        self, seed: int, path: Path, cut: snapshot.Snapshot | None = None, selector: str = "first_m"
    ) -> None:
        settings = settings_of(seed=seed)
        super().__init__(seed, settings=settings, plugins=plugins_of(selector, seed=seed))
        saved, commands = b"", list[AnyCommand]()
        if cut is not None:
            saved = encode_value(cut)
            commands = snapshot.restore(self.coordinator, cut, self.now)
        header = Header(
            darts="0", incarnation=1, config={}, settings=settings,
            plugins={**PLUGINS, "selector": Plugin(name=selector)},
            prompt_tokens=[5] * settings.prompts, tags=[],
            snapshot=saved, restored_at=self.now, restored=tuple(map(command_bytes, commands)),
        )  # fmt: skip
        self.said: list[str] = []
        self.writer = RecordingWriter(path, header, self.said.append)
        handle = self.coordinator.handle

        def recorded(event: AnyEvent, now: float) -> list[AnyCommand]:
            commands = handle(event, now)
            self.writer.record(now, event, commands)
            return commands

        self.coordinator.handle = recorded
        for command in commands:
            self.carry_out(command)

    def play(self, halt_at: int = -1) -> RecordedWorld:
        """To its end, recorded."""
        self.start(self.version)
        self.run(halt_at=halt_at)
        self.writer.close()
        assert not self.said
        return self
