"""Selector `gfpo`: of a larger group, train on the shortest or the most token-efficient.

Turns lengths, or rewards per token, of all candidates into the M that are trained on, ties by
arrival. Truncated candidates count like the others. Remembers nothing between calls.
Source: group filtered policy optimization (GFPO), arXiv 2508.09726: its two metrics. Its third
form, a larger M for harder prompts, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pipeline.plugins import interfaces
from pipeline.plugins.actions import AnyAction
from pipeline.plugins.interfaces import SelectorEvent, Wants
from pipeline.plugins.registry import register
from pipeline.plugins.selectors._choosing import (
    finalize,
    reward_of,
    scored,
    settled,
    shortest_first,
)
from pipeline.plugins.views import GroupView


class GfpoOptions(interfaces.Options, frozen=True, kw_only=True):
    """Options of the `gfpo` selector."""

    by: Literal["length", "reward_per_token"] = "reward_per_token"
    """What is kept: the shortest, or those with the largest reward per token."""


@register("selector", "gfpo")
class Gfpo:
    Options = GfpoOptions
    wants = Wants(reward=True)

    def __init__(self, options: GfpoOptions | None = None) -> None:
        self._options = options or GfpoOptions()

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if not settled(group):
            return
        members = scored(group)
        if self._options.by == "length":
            ordered = shortest_first(members)
        else:
            ordered = sorted(members, key=lambda m: -reward_of(m) / max(1, m.tokens))
        what = self._options.by.replace("_", " ")
        yield finalize(ordered[: group.size], f"{group.size} of {group.budget} by {what}")
