"""Plug-ins and a method's settings, taken from a configuration into small runs.

A small run draws its sizes, machines and faults from a seed; what the method itself is (plug-ins
and their options, M, staleness, how many groups are opened) stays the configuration's. Lengths
are scaled to its limit of a response, so that options in tokens mean what they would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pipeline.coordinator.state import Plugins, Settings

SMALL_TOKENS = 24
"""Limit of a response in the small runs of the house; lengths and paces are made for it."""
_DRAWN = (
    *("seed", "steps", "need", "ranks", "prompts", "held_out", "eval_every", "eval_samples"),
    *("checkpoint_every", "stop_tokens", "log_wait_s", "gap_limit", "limits", "knee"),
)
"""Settings of a small run that it draws itself."""
_NONE: dict[str, Any] = {
    **dict.fromkeys(("held_out_tags", "eval_sets", "sources"), ()),
    "eval_best": "",
    "turns": 0,
    "turn_tokens": 0,
}
"""What small runs have not."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is put to the test."""

    settings: Settings  # of the configuration
    make: Callable[[int], Plugins]  # seed -> its plug-ins, new ones each time
    columns: tuple[str, ...] = ()  # of the data, that may stand behind a prompt
    solved: bool = False  # the data has solutions
    arguments: str = ""  # of `darts simulate` that name it

    @property
    def scale(self) -> float:
        """Tokens of its responses for each one of the house's small runs."""
        return max(1.0, self.settings.max_tokens / SMALL_TOKENS)

    def settings_in(self, drawn: Settings) -> Settings:
        """Its settings, in a run of the sizes drawn."""
        own = {name: getattr(drawn, name) for name in _DRAWN}
        own |= {
            name: -(-getattr(self.settings, name) * drawn.need // self.settings.need)
            for name in ("reserve", "hold")
        }
        return msgspec.structs.replace(self.settings, **own, **_NONE)

    def on_policy(self) -> Subject:
        """The same without stale tokens: then no response is under way after a step."""
        settings = msgspec.structs.replace(self.settings, max_staleness=0)
        return msgspec.structs.replace(self, settings=settings)

    def plugins(self) -> str:
        """Names of the plug-ins' classes, for messages."""
        made = self.make(0)
        kinds = made.__struct_fields__
        return ", ".join(f"{kind} {type(getattr(made, kind)).__name__}" for kind in kinds)
