"""Environment `single`: a response is one turn of the model. No calls, no cost."""

from __future__ import annotations

from pipeline.plugins.interfaces import Stateless
from pipeline.plugins.registry import register
from pipeline.plugins.views import Turn


@register("environment", "single")
class Single(Stateless):
    idle = True

    def turn(self, turn: Turn) -> None:
        """The response is complete."""
        del turn
